"""A new plugin's package, written from the templates: complete, installable, and with a small real model inside."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from foresight_bench.errors import DataError, EnvironmentFault, UsageError

TITLES = {
    "encoder": "A frozen encoder",
    "adapter": "An adapter",
    "decoder": "A video decoder",
    "metric": "A metric",
}
REQUIREMENTS = {"encoder": ', "timm>=1.0.20"'}
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*")


def create(kind: str, name: str, parent: Path) -> Path:
    """Write the package of a new ``kind`` called ``name`` into a new folder of ``parent``, and return that folder.

    Raises:
        UsageError: the name is none that a plugin can have.
        DataError: the folder is there already.
        EnvironmentFault: it cannot be written; nothing is left behind.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a plugin.", "Use small letters, digits, - and ., for example my-vit."
        )
    package = f"foresight_{re.sub('[-.]', '_', name)}"
    folder = parent / package.replace("_", "-")
    if folder.exists():
        raise DataError(f"{folder} is there already.", "Choose another name, or another place with --output.")
    values = {
        "kind": kind,
        "Kind": kind.capitalize(),
        "name": name,
        "Class": "".join(part.capitalize() for part in re.split("[-.]", name)),
        "package": package,
        "distribution": folder.name,
        "title": TITLES[kind],
        "version": metadata.version("foresight-bench"),
        "requirements": REQUIREMENTS.get(kind, ""),
        "example": f"{name}~random" if kind == "encoder" else name,
        "run": {
            "encoder": f"-e {name}",
            "adapter": f"-e dinov2 -a {name}",
            "decoder": f"-e dinov2 -d {name}",
            "metric": f"-e dinov2 --metric {name}",
        }[kind],
    }
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=parent, prefix=f".{folder.name}-") as temporary:
            whole = Path(temporary, folder.name)
            for path, text in _texts(kind, package).items():
                target = whole / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(Template(text).substitute(values), "utf-8")
            whole.rename(folder)
    except OSError as error:
        raise EnvironmentFault(f"Cannot write {folder}: {error.strerror}.", "Choose another --output.") from error
    return folder


def _texts(kind: str, package: str) -> dict[str, str]:
    """Return the templates by the path of the file that each becomes."""
    places = {
        "common/pyproject.toml": "pyproject.toml",
        "common/README.md": "README.md",
        "common/ci.yml": ".github/workflows/test.yml",
        "common/test.py": f"tests/test_{package}.py",
        f"{kind}/__init__.py": f"{package}/__init__.py",
        f"{kind}/{kind}.py": f"{package}/{kind}.py",
    }
    templates = files("foresight_bench") / "templates"
    return {target: (templates / f"{source}.tmpl").read_text("utf-8") for source, target in places.items()}
