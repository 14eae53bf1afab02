"""The process that watches over a worker: what it hears, what it keeps of what is printed, and when it kills."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foresight_bench import supervising
from foresight_bench.cells import Provenance
from foresight_bench.jobs import Event, Job
from foresight_bench.supervising import LOG_HEAD, LOG_TAIL, Supervisor, last_words

JOB = Job(
    suite="toy",
    limit=0,
    cohort="toy-1",
    rows=(),
    weights={},
    results="results",
    provenance=Provenance(
        device="", machine="here", commit="", dirty=False, python="", libraries={}, weights_sources={}, finished=""
    ),
    device="cpu",
    precision="float32",
    compiled=None,
    threads=3,
)
START = """#!/usr/bin/env python3
import json, os, signal, subprocess, sys, time
job = json.loads(sys.stdin.readline())

def say(**event):
    print(json.dumps(event), flush=True)

"""
Start = Callable[..., Supervisor]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return what supervises a worker whose program is given; its log is ``tmp_path / "log"``."""

    def started(program: str, timeout: float = 20) -> Supervisor:
        path = tmp_path / "worker"
        path.write_text(START + program)
        path.chmod(0o755)
        return Supervisor(JOB, str(path), timeout, tmp_path / "log")

    return started


def ends(pid: int) -> bool:
    """Return whether a process is gone, or about to be waited for, within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_gets_its_job_and_its_threads_and_is_heard_to_its_end(start: Start) -> None:
    program = 'say(text=job["suite"], units=job["threads"])\nsay(text=os.environ["OMP_NUM_THREADS"], ended="cell")\n'
    assert list(start(program).events()) == [Event("toy", 3), Event("3", ended="cell")]


@pytest.mark.parametrize(
    ("end", "died", "sentence"),
    [
        ("sys.exit(7)", "error", "The worker ended with exit code 7 before the cell did."),
        ("os._exit(1)", "error", "The worker ended with exit code 1 before the cell did."),
        ("raise SystemError", "error", "The worker ended with exit code 1 before the cell did."),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed", "The worker was killed by SIGSEGV."),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed", "The worker was killed by SIGTERM."),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "killed",
            "The worker was killed by SIGKILL. The system does that when the host's memory runs out.",
        ),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "killed", "The worker was killed by signal 35."),
    ],
)
def test_how_a_worker_ended_is_told_apart(start: Start, end: str, died: str, sentence: str) -> None:
    *said, last = start(f'say(began="row")\n{end}\n').events()
    assert said == [Event(began="row")]
    assert last == Event(died=died, text=sentence)


def test_a_worker_that_said_what_is_wrong_with_everything_has_not_died_of_it(start: Start) -> None:
    program = 'say(error="The disk is full.", exit_code=4, fatal=True)\nsys.exit(1)\n'
    assert list(start(program).events()) == [Event(error="The disk is full.", exit_code=4, fatal=True)]


def test_lines_that_are_no_events_are_passed_over(start: Start) -> None:
    program = r"""
say(text="one")
for line in ("", "not json", "[1, 2]", "7", '{"colour": "red"}', "[" * 100_000, '{"text": "cut'):
    print(line, flush=True)
os.write(1, b"\xff\xfe\n" + b"x" * 3_000_000 + b"\n")
os.write(1, b'{"text": "in ')
time.sleep(0.3)
os.write(1, b'two"}\n{"text": "three"}\n{"text": "unfinished"')
"""
    assert [event.text for event in start(program).events()] == ["one", "in two", "three"]


def test_a_silent_worker_is_killed_with_what_it_started(start: Start) -> None:
    program = 'child = subprocess.Popen(["sleep", "60"])\nsay(text=str(child.pid))\ntime.sleep(60)\n'
    began = time.monotonic()
    first, last = start(program, timeout=1).events()
    assert last == Event(died="timeout", text="The worker said nothing for 1 s and was killed.")
    assert 1 <= time.monotonic() - began < 10
    assert ends(int(first.text))


def test_what_is_no_event_does_not_count_as_a_word(start: Start) -> None:
    program = 'say(began="row")\nfor _ in range(50):\n    print("still here", flush=True)\n    time.sleep(0.1)\n'
    *_, last = start(program, timeout=1).events()
    assert last.died == "timeout"


def test_a_worker_that_speaks_now_and_then_is_left_alone(start: Start) -> None:
    program = "for number in range(6):\n    say(units=number + 1)\n    time.sleep(0.4)\n"
    assert [event.units for event in start(program, timeout=1.5).events()] == [1, 2, 3, 4, 5, 6]


def test_a_child_that_holds_the_pipes_does_not_hold_up_the_end(start: Start) -> None:
    program = 'child = subprocess.Popen(["sleep", "60"])\nsay(text=str(child.pid))\n'
    began = time.monotonic()
    (said,) = start(program).events()
    assert time.monotonic() - began < 10
    assert ends(int(said.text))


def test_a_worker_that_closes_its_pipe_and_stays_has_died(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "LEAVE", 0.5)
    (last,) = start("os.close(1)\ntime.sleep(60)\n").events()
    assert last.died == "timeout"


def test_the_worker_is_killed_when_nobody_listens_any_more(start: Start) -> None:
    events = start("say(text=str(os.getpid()))\ntime.sleep(60)\n").events()
    pid = int(next(events).text)
    events.close()
    assert ends(pid)


def test_a_worker_that_does_not_take_its_job_is_heard_all_the_same(tmp_path: Path) -> None:
    program = tmp_path / "worker"
    program.write_text("#!/bin/sh\nexec <&-\nexit 3\n")
    program.chmod(0o755)
    large = JOB.model_copy(update={"cohort": "x" * 1_000_000})  # more than a pipe holds
    (last,) = Supervisor(large, str(program), 20, tmp_path / "log").events()
    assert last == Event(died="error", text="The worker ended with exit code 3 before the cell did.")


def test_the_first_and_the_last_of_what_is_printed_is_kept(start: Start, tmp_path: Path) -> None:
    program = """
os.write(2, b"first words ")
for _ in range(30):
    os.write(2, b"-" * 1_000_000)
os.write(2, b" last words")
say(text="done")
"""
    assert [event.text for event in start(program).events()] == ["done"]
    log = (tmp_path / "log").read_bytes()
    assert len(log) < LOG_HEAD + LOG_TAIL + 70_000
    assert log.startswith(b"first words -")
    assert log.endswith(b"- last words")
    said = re.search(rb"-\n\.\.\. (\d+) bytes left out \.\.\.\n-", log)
    assert said is not None
    assert len(log) - (len(said[0]) - 2) + int(said[1]) == len(b"first words  last words") + 30_000_000
    assert last_words(tmp_path / "log").endswith("- last words")
    assert len(last_words(tmp_path / "log")) <= LOG_TAIL


def test_little_is_kept_whole_and_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, start: Start) -> None:
    assert not list(start('os.write(2, b"caf\\xc3\\xa9 \\xff")\n').events())
    assert (tmp_path / "log").read_bytes() == b"caf\xc3\xa9 \xff"
    assert last_words(tmp_path / "log") == "café \N{REPLACEMENT CHARACTER}"
    assert last_words(tmp_path / "nowhere") == ""
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    assert [event.text for event in start('os.write(2, b"x" * 200_000)\nsay(text="done")\n').events()] == ["done"]


def test_an_event_says_only_what_it_says() -> None:
    event = Event("going on", 3, ended="cell")
    assert json.loads(event.line()) == {"text": "going on", "units": 3, "ended": "cell"}
    assert Event.read(event.line().encode()) == event
    assert os.linesep not in event.line()[:-1]
