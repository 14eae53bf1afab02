"""The contracts as test classes, for a plugin's own tests: subclass one and say what is to be checked.

    from foresight_bench.testing.conformance import EncoderConformance


    class TestMine(EncoderConformance):
        @pytest.fixture
        def encoder(self):
            return "mine~random"

Needs pytest. The plugin must be installed, as its users have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import pytest

from foresight_bench.testing.kit import Check, Status, run_check
from foresight_bench.testing.selecting import checks_of, subject_of


class _Conformance:
    expected_failed_checks: ClassVar[Mapping[str, str]] = {}
    """Checks that are known to fail, with the reason. One of them that passes is a failure, so the list stays true."""

    def test_expected_failures_are_checks(self, kind: str) -> None:
        """A name in ``expected_failed_checks`` that is none hides nothing, and is a mistake."""
        assert set(self.expected_failed_checks) <= set(checks_of(kind).names())

    def conform(self, kind: str, name: str, check: Check[Any]) -> None:
        """Run one check; what pytest shows is its message alone."""
        found = run_check(check, _subject(kind, name), self.expected_failed_checks)
        if found.status is Status.FAIL:
            pytest.fail(f"{found.must}\n{found.message}\n{found.traceback}".rstrip(), pytrace=False)
        if found.status is Status.EXPECTED:
            pytest.xfail(found.message)
        if found.status is not Status.PASS:
            pytest.skip(f"{found.status}: {found.message}")


@cache
def _subject(kind: str, name: str) -> Any:
    return subject_of(kind, name, "cpu")


def _every(kind: str) -> pytest.MarkDecorator:
    checks = list(checks_of(kind))
    return pytest.mark.parametrize("check", checks, ids=[check.name for check in checks])


class EncoderConformance(_Conformance):
    """A test for each MUST of an encoder."""

    @pytest.fixture
    def kind(self) -> str:
        """What is checked."""
        return "encoder"

    @pytest.fixture
    def encoder(self) -> str:
        """Return the encoder's name as on the command line; override this."""
        raise NotImplementedError("Override the fixture `encoder`, to return the encoder's name.")

    @_every("encoder")
    def test_must(self, encoder: str, check: Check[Any]) -> None:
        """The MUST that the check is named after holds."""
        self.conform("encoder", encoder, check)


class AdapterConformance(_Conformance):
    """A test for each MUST of an adapter."""

    @pytest.fixture
    def kind(self) -> str:
        """What is checked."""
        return "adapter"

    @pytest.fixture
    def adapter(self) -> str:
        """Return the adapter's name; override this."""
        raise NotImplementedError("Override the fixture `adapter`, to return the adapter's name.")

    @_every("adapter")
    def test_must(self, adapter: str, check: Check[Any]) -> None:
        """The MUST that the check is named after holds."""
        self.conform("adapter", adapter, check)


class DecoderConformance(_Conformance):
    """A test for each MUST of a decoder."""

    @pytest.fixture
    def kind(self) -> str:
        """What is checked."""
        return "decoder"

    @pytest.fixture
    def decoder(self) -> str:
        """Return the decoder's name; override this."""
        raise NotImplementedError("Override the fixture `decoder`, to return the decoder's name.")

    @_every("decoder")
    def test_must(self, decoder: str, check: Check[Any]) -> None:
        """The MUST that the check is named after holds."""
        self.conform("decoder", decoder, check)


class MetricConformance(_Conformance):
    """A test for each MUST of a metric."""

    @pytest.fixture
    def kind(self) -> str:
        """What is checked."""
        return "metric"

    @pytest.fixture
    def metric(self) -> str:
        """Return the metric's name; override this."""
        raise NotImplementedError("Override the fixture `metric`, to return the metric's name.")

    @_every("metric")
    def test_must(self, metric: str, check: Check[Any]) -> None:
        """The MUST that the check is named after holds."""
        self.conform("metric", metric, check)
