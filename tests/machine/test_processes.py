from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lorawatch.machine import process_kinds, process_search, processes, unseen
from lorawatch.machine.processes import JobProcesses, Search, TrainerFinder, find_trainer, this_process, trainer_of
from lorawatch.machine.trainer_process import children_of
from tests.machine import jobs

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what another process has open")
pytestmark = linux


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, deep enough that nothing of another test lies above it."""
    folder = tmp_path / "home" / "project" / "out" / "run"
    folder.mkdir(parents=True)
    (folder / "train.log").touch()
    return folder


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return tmp_path / "src"


def found(run: Path) -> Search:
    return find_trainer([run / "train.log"], run)


def test_the_process_whose_output_is_the_log_is_the_trainer(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    devices = {"CUDA_VISIBLE_DEVICES": "2,GPU-1f", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with jobs.running([script, "--hub_token", "hf_secret"], log=run / "train.log", env=devices) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.pid == job.pid
        assert trainer.evidence == f"pid {job.pid} (python train.py) has train.log open"
        assert trainer.certain
        assert (trainer.visible_devices, trainer.device_order) == ("2,GPU-1f", "PCI_BUS_ID")
        assert trainer.ranks == ()
        assert "hf_secret" not in repr(trainer)


def test_what_the_environment_does_not_set_is_not_known(run: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log"):
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.visible_devices is None


def test_a_file_below_the_folder_that_nobody_listed_is_evidence_too(run: Path, src: Path) -> None:
    events = run / "runs" / "Nov24_host"
    events.mkdir(parents=True)
    script = jobs.write(
        src, "main.py", f"from job import *\nfile = open({str(events / 'events.out')!r}, 'wb')\nready()\n"
    )
    with jobs.running([script]) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.evidence == f"pid {job.pid} (python main.py) has events.out open"


def test_a_file_in_the_folder_of_another_run_below_is_no_evidence(run: Path, src: Path) -> None:
    (run / "run2").mkdir()
    script = jobs.write(
        src, "main.py", f"from job import *\nfile = open({str(run / 'run2' / 'a.log')!r}, 'wb')\nready()\n"
    )
    with jobs.running([script]):
        assert found(run).trainer is None


def test_a_log_that_is_reached_through_a_link_is_the_same_log(run: Path, src: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.log"
    link.symlink_to(run / "train.log")
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log") as job:
        trainer = find_trainer([link], None).trainer
        assert trainer is not None
        assert trainer.pid == job.pid


def test_a_log_of_the_same_name_elsewhere_is_another_log(run: Path, src: Path, tmp_path: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=tmp_path / "train.log", cwd=src):
        assert found(run).trainer is None


def test_who_only_reads_the_log_is_not_the_trainer(run: Path, src: Path) -> None:
    script = jobs.write(src, "show.py", f"from job import *\nfile = open({str(run / 'train.log')!r}, 'rb')\nready()\n")
    with jobs.running([script]):
        assert found(run).trainer is None


@pytest.mark.parametrize("pipeline", ["| tee {log}", "| cat | tee -a {log}"])
def test_through_a_pipe_the_trainer_is_who_prints_into_it(pipeline: str, run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    log = run / "train.log"
    line = f"{sys.executable} {script} {pipeline.format(log=log)}"
    reader, end = os.pipe()
    with jobs.running([line], log=Path(f"/dev/fd/{end}"), in_shell=True):
        os.read(reader, 1)  # tee passed the line on, so it has opened the log before
        trainer = found(run).trainer
        assert trainer is not None
        assert "train.py" in " ".join(trainer.process.cmdline())
        assert trainer.evidence.startswith(f"pid {trainer.pid} (python train.py) prints into pid ")
        assert trainer.evidence.endswith("(tee), which has train.log open")
    os.close(reader)
    os.close(end)


def test_a_shell_that_holds_the_log_leads_to_the_training_that_it_started(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    line = f"{sys.executable} {script} > /dev/null 2>&1; true"
    with jobs.running([line], log=run / "train.log", in_shell=True) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.process.ppid() == job.pid
        assert trainer.evidence.endswith(f"was started by pid {job.pid} (sh), which has train.log open")


def test_of_the_ranks_of_a_launcher_the_first_is_the_trainer(run: Path, src: Path) -> None:
    jobs.write(src, "train.py", jobs.PLAIN)
    launcher = jobs.write(
        src, "torchrun",
        "from job import *\nstarted = [child('train.py', RANK=str(n), WORLD_SIZE='3', MASTER_PORT='29500')"
        " for n in (2, 0, 1)]\nready()\n[one.wait() for one in started]\n",
    )  # fmt: skip
    with jobs.running([launcher], log=run / "train.log", cwd=src, processes=4) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.process.ppid() == job.pid
        assert trainer.process.environ()["RANK"] == "0"
        assert [rank.environ()["RANK"] for rank in trainer.ranks] == ["1", "2"]
        roles = [(process.pid, role) for process, role in JobProcesses(trainer).members()]
        assert roles == [(trainer.pid, "trainer"), *((rank.pid, "rank") for rank in trainer.ranks)]


def test_ranks_of_another_job_of_the_same_launcher_are_not_the_trainers(run: Path, src: Path) -> None:
    jobs.write(src, "train.py", jobs.PLAIN)
    launcher = jobs.write(
        src, "torchrun",
        "from job import *\none = child('train.py', RANK='0', MASTER_PORT='1')\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\nother = child('train.py', RANK='1', MASTER_PORT='2')\n"
        "ready()\none.wait()\nother.wait()\n",
    )  # fmt: skip
    with jobs.running([launcher], log=run / "train.log", cwd=src, processes=3):
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.ranks == ()


@pytest.mark.parametrize("logs", [True, False])
def test_a_launcher_alone_is_not_the_trainer(logs: bool, run: Path, src: Path) -> None:
    launcher = jobs.write(src, "torchrun", jobs.PLAIN)
    with jobs.running([launcher, "--output_dir", run], log=run / "train.log" if logs else None):
        search = found(run)
        assert search.trainer is None
        assert search.note == "only the launcher of the training runs so far, none of its processes"


def test_who_holds_the_log_and_has_no_training_is_named(run: Path) -> None:
    line = "printf r > /dev/fd/$JOB_READY; head -c1 /dev/fd/$JOB_GO; true"
    with jobs.running([line], log=run / "train.log", in_shell=True) as job:
        search = found(run)
        assert search.trainer is None
        assert search.note == f"pid {job.pid} (sh), which has train.log open, and no training in Python belongs to it"


def test_a_program_that_may_train_itself_is_the_trainer_unless_it_started_one(run: Path, src: Path) -> None:
    jobs.write(src, "main.py", jobs.PLAIN)
    alone = jobs.write(src, "llamafactory-cli", jobs.PLAIN)
    with jobs.running([alone, "train"], log=run / "train.log") as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.pid == job.pid
    alone.write_text("from job import *\none = child('main.py')\nready()\none.wait()\n")
    with jobs.running([alone, "train"], log=run / "train.log", cwd=src, processes=2) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.process.ppid() == job.pid


def test_of_a_script_that_starts_the_training_and_the_training_itself_it_is_who_has_torch(run: Path, src: Path) -> None:
    jobs.write(src, "fit.py", f"from job import *\nkept = load_torch({str(src)!r})\nready()\n")
    sweep = jobs.write(src, "sweep.py", "from job import *\none = child('fit.py')\nready()\none.wait()\n")
    with jobs.running([sweep], log=run / "train.log", cwd=src, processes=2) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.process.ppid() == job.pid
        assert "python fit.py" in trainer.evidence


def test_two_trainings_that_write_one_log_are_ambiguous_and_none_is_taken(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    log = run / "train.log"
    with jobs.running([script], log=log) as one, jobs.running([script], log=log) as other:
        search = found(run)
        assert search.trainer is None
        assert search.expected
        assert f"pid {one.pid} (python train.py)" in search.note
        assert f"pid {other.pid} (python train.py)" in search.note
        assert "none is taken" in search.note


WORKERS = """
from job import *
if __name__ == "__main__":
    kept = [{start}]
    helper = child("gpustat.py")
    ready()
"""


@pytest.mark.parametrize(
    "start",
    [
        "start_worker('fork')",
        "start_worker('fork', b'pt_data_worker')",
        "start_worker('spawn')",
        "start_worker('forkserver')",
    ],
)
def test_workers_of_a_data_loader_are_told_from_their_trainer_and_from_its_helpers(
    start: str, run: Path, src: Path
) -> None:
    script = jobs.write(src, "train.py", WORKERS.format(start=start))
    jobs.write(src, "gpustat.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log", cwd=src, processes=2) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.pid == job.pid
        members = JobProcesses(trainer).members()
        assert [role for _, role in members] == ["trainer", "worker"]
        assert members[1][0].pid != job.pid


def test_workers_of_every_rank_are_found_with_one_look(run: Path, src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write(src, "train.py", "from job import *\nkept = start_worker('fork')\nready()\n")
    launcher = jobs.write(
        src, "torchrun",
        "from job import *\nstarted = [child('train.py', RANK=str(n), WORLD_SIZE='2') for n in range(2)]\n"
        "ready()\n[one.wait() for one in started]\n",
    )  # fmt: skip
    with jobs.running([launcher], log=run / "train.log", cwd=src, processes=3):
        trainer = found(run).trainer
        assert trainer is not None
        looks: list[int] = []

        def counted(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
            looks.append(process.pid)
            return children_of(process, recursive=recursive)

        monkeypatch.setattr(processes, "children_of", counted)
        members = JobProcesses(trainer).members()
        assert looks == [trainer.process.ppid()]
        assert [role for _, role in members] == ["trainer", "rank", "worker", "worker"]
        assert {worker.ppid() for worker, role in members if role == "worker"} == {one.pid for one, _ in members[:2]}


def test_workers_are_looked_for_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    looks: list[float] = []

    def children_of(*asked: object, **how: object) -> list[psutil.Process]:
        looks.append(now[0])
        return []

    monkeypatch.setattr(processes, "children_of", children_of)
    job = JobProcesses(this_process(), clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        job.members()
    assert looks == [0.0, 5.0, 10.0]


def test_where_a_look_at_all_processes_is_dear_it_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    spent = iter(range(100))  # each look takes a second of processor time
    looks: list[float] = []

    def children_of(*asked: object, **how: object) -> list[psutil.Process]:
        looks.append(now[0])
        return []

    monkeypatch.setattr(processes, "children_of", children_of)
    monkeypatch.setattr(time, "thread_time", lambda: float(next(spent)))
    job = JobProcesses(this_process(), clock=lambda: now[0])
    for second in (0, 5, 1999, 2000):
        now[0] = float(second)
        job.members()
    assert looks == [0.0, 2000.0]


def test_the_log_that_a_worker_or_a_helper_inherited_does_not_make_it_the_trainer(run: Path, src: Path) -> None:
    jobs.write(src, "tensorboard.py", jobs.PLAIN)
    script = jobs.write(
        src, "train.py", "from job import *\nkept = [start_worker('fork'), child('tensorboard.py')]\nready()\n"
    )
    with jobs.running([script], log=run / "train.log", cwd=src, processes=2) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.pid == job.pid


def test_lorawatch_itself_is_never_the_trainer(run: Path) -> None:
    with (run / "train.log").open("ab"):
        assert found(run).trainer is None


def test_the_files_that_wandb_writes_lead_to_who_started_it(run: Path, src: Path) -> None:
    script = jobs.write(
        src, "main.py",
        "from job import *\nfile = open(sys.argv[1], 'wb')\n"
        "core = subprocess.Popen(['wandb-core'], executable='/bin/cat', stdin=subprocess.PIPE, stdout=file)\n"
        "file.close()\nready()\ncore.stdin.close()\ncore.wait()\n",
    )  # fmt: skip
    with jobs.running([script, run / "output.log"]) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.evidence == (
            f"pid {job.pid} (python main.py) started pid {psutil.Process(job.pid).children()[0].pid} (wandb-core), "
            "which has output.log open"
        )


@pytest.mark.parametrize("option", ["--output_dir {run}", "--output_dir={run}", "output_dir=out/run", "out/run"])
def test_a_training_that_names_the_folder_as_its_output_is_the_trainer(option: str, run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    (run / "train.log").unlink()
    project = run.parent.parent
    with jobs.running([script, *option.format(run=run).split()], cwd=project) as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.evidence == f"pid {job.pid} (python train.py) names run as its output"
        assert trainer.certain


@pytest.mark.parametrize("words", ["--model {run} --output_dir /elsewhere", "--resume_from {run}"])
def test_a_training_that_only_starts_from_the_folder_is_not_its_trainer(words: str, run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script, *words.format(run=run).split()], cwd=src):
        assert found(run).trainer is None


def test_the_only_training_in_the_folder_is_a_likely_trainer_and_is_called_that(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    project = run.parent.parent
    with jobs.running([script], cwd=project) as job:
        os.utime(run / "train.log")  # as a trainer does that opens its log for each row
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.pid == job.pid
        assert not trainer.certain
        assert "is the only training that runs in" in trainer.evidence
        with jobs.running([script], cwd=project):
            os.utime(run / "train.log")
            assert found(run).trainer is None
            assert "could each be the trainer" in found(run).note


@pytest.mark.parametrize("words", [[], ["--output_dir", "out/run"]])
def test_a_training_that_began_after_the_last_write_is_another_run(words: list[str], run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script, *words], cwd=run.parent.parent) as job:
        before = psutil.Process(job.pid).create_time() - 60
        os.utime(run / "train.log", (before, before))
        assert found(run).trainer is None


def test_a_run_that_nobody_writes_any_more_is_not_given_to_whoever_trains_beside_it(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], cwd=run.parent.parent):
        os.utime(run / "train.log")
        written = (run / "train.log").stat().st_mtime
        assert find_trainer([run / "train.log"], run, now=written + 1).trainer is not None
        assert find_trainer([run / "train.log"], run, now=written + process_search.LIVE + 1).trainer is None


def test_who_is_not_a_training_is_not_taken_for_where_it_works(run: Path, src: Path) -> None:
    script = jobs.write(src, "notebook.py", jobs.PLAIN)
    with jobs.running([script], cwd=run):
        os.utime(run / "train.log")
        search = found(run)
        assert search.trainer is None
        assert search.expected


def test_a_process_that_ended_is_not_alive_nor_is_another_with_its_id(
    run: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log") as job:
        trainer = found(run).trainer
        assert trainer is not None
        assert trainer.alive
        os.close(job.go)
        job.go = -1
        os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        assert not trainer.alive, "a zombie"
        job.process.wait()
        assert not trainer.alive
    reused = trainer_of(psutil.Process(), "a test")
    monkeypatch.setattr(reused.process, "_ident", (reused.pid, 1.0))  # as if it had been made for an earlier process
    assert not reused.alive


OTHERS = "a training of another user cannot be looked into: run lorawatch as that user or as root"


def test_a_training_of_another_user_is_said_once_and_with_what_to_do(
    run: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log", cwd=src) as job:
        listdir = os.listdir

        def denied(path: str | bytes) -> list[str] | list[bytes]:
            if path == f"/proc/{job.pid}/fd":
                raise PermissionError(13, "Permission denied")
            return listdir(path)

        monkeypatch.setattr(os, "listdir", denied)
        now = [0.0]
        finder = TrainerFinder([run / "train.log"], run, clock=lambda: now[0])
        assert finder.look() is None
        now[0] = 100.0
        assert finder.look() is None
        assert finder.problems == (f"no process is seen to write train.log; {OTHERS}",)


def mounted(kind: str) -> Callable[..., list[SimpleNamespace]]:
    def disk_partitions(**asked: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(device="host:/x", mountpoint="/", fstype=kind)]

    return disk_partitions


@pytest.mark.parametrize(
    ("container", "kind", "said"),
    [
        (True, "ext4", "docker run --pid=host"),
        (False, "nfs4", "it is on nfs4, so another machine may"),
        (False, "ext4", "in another container or on another machine"),
    ],
)
def test_where_nobody_writes_a_live_run_it_says_where_the_trainer_may_be(
    container: bool, kind: str, said: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen, "in_container", lambda: container)
    monkeypatch.setattr(psutil, "disk_partitions", mounted(kind))
    search = found(run)
    assert search.trainer is None
    assert search.expected
    assert said in search.note


def test_of_a_run_that_ended_long_ago_nothing_is_expected(run: Path) -> None:
    os.utime(run / "train.log", (1e9, 1e9))
    assert found(run) == Search(None, "no process here writes train.log", False)


def test_without_a_proc_nothing_is_found_and_nothing_raised(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "missing"))
    search = found(run)
    assert search.trainer is None
    assert search.note


def test_missing_files_and_a_missing_folder_are_no_trouble(tmp_path: Path) -> None:
    assert find_trainer([], None).trainer is None
    assert find_trainer([tmp_path / "a" / "train.log"], tmp_path / "a").trainer is None


class Searches:
    """Stands for the search through all processes: says what it is told to, and counts."""

    def __init__(self, *results: Search) -> None:
        self.results: Iterator[Search] = iter(results)
        self.times: list[float] = []
        self.now = 0.0

    def __call__(self, files: Collection[Path], folder: Path | None) -> Search:
        self.times.append(self.now)
        return next(self.results)

    def look(self, finder: TrainerFinder, until: float) -> None:
        while self.now < until:
            finder.look()
            self.now += 1.0


def test_it_searches_every_quarter_minute_until_it_found_one_and_then_every_minute() -> None:
    none, one = Search(None, "nobody", True), Search(this_process())
    searches = Searches(none, none, one, one, one)
    finder = TrainerFinder([], None, clock=lambda: searches.now, find=searches)
    searches.look(finder, 200.0)
    assert searches.times == [0.0, 15.0, 30.0, 90.0, 150.0]
    assert finder.trainer is one.trainer
    assert finder.problems == ("nobody",)


def test_a_trainer_that_ended_stays_until_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = trainer_of(psutil.Process(), "a test")
    monkeypatch.setattr(ended.process, "_ident", (ended.pid, 1.0))
    other = this_process()
    searches = Searches(Search(ended), Search(None, "nobody", True), Search(other))
    finder = TrainerFinder([], None, clock=lambda: searches.now, find=searches)
    searches.look(finder, 20.0)
    assert finder.trainer is ended
    assert not finder.problems, "that it ended is known; that nobody trains is no news"
    searches.look(finder, 40.0)
    assert finder.trainer is other


def test_a_guess_does_not_take_the_place_of_a_living_trainer(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    with jobs.running([script], log=run / "train.log"):
        certain = found(run)
        guess = Search(trainer_of(psutil.Process(), "a guess", certain=False))
        searches = Searches(certain, guess, Search(None, "nobody", True))
        finder = TrainerFinder([], None, clock=lambda: searches.now, find=searches)
        searches.look(finder, 130.0)
        assert len(searches.times) == 3
        assert finder.trainer is certain.trainer
        assert not finder.problems


def test_a_guess_does_not_take_the_place_of_a_trainer_that_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = trainer_of(psutil.Process(), "a test")
    monkeypatch.setattr(killed.process, "_ident", (killed.pid, 1.0))
    next_job = Search(trainer_of(psutil.Process(), "is the only training there", certain=False))
    searches = Searches(Search(killed), *[next_job] * 8)
    finder = TrainerFinder([], None, clock=lambda: searches.now, find=searches)
    searches.look(finder, 60.0)
    assert len(searches.times) > 1
    assert finder.trainer is killed
    assert not killed.alive


def test_a_training_that_prints_into_another_file_trains_another_run(run: Path, src: Path) -> None:
    script = jobs.write(src, "train.py", jobs.PLAIN)
    project = run.parent.parent
    with jobs.running([script], cwd=project, log=project / "other.log"):
        os.utime(run / "train.log")
        assert found(run).trainer is None


@pytest.mark.parametrize(
    ("command", "program", "shown"),
    [
        ("python train.py --lr 1", "train", "python train.py"),
        ("/usr/bin/python3.11 -u -X dev -W ignore src/sft.py", "sft", "python sft.py"),
        ("python -um torch.distributed.run x.py", "torch.distributed.run", "python -m torch.distributed.run"),
        ("python -mfoo", "foo", "python -m foo"),
        ("python3 /opt/bin/accelerate launch x.py", "accelerate", "python accelerate"),
        ("python3 /x/torch/_inductor/compile_worker/__main__.py", "compile_worker", "python __main__.py"),
        ("python -c pass", "-c", "python -c"),
        ("python", "", "python"),
        ("python -m", "", "python -m"),
        ("/usr/bin/tee a.log", "tee", "tee"),
        ("", "", "?"),
        ("python \x1b[2J.py", "\x1b[2J", "python ?[2J.py"),
    ],
)
def test_a_command_is_known_and_shown_by_its_program(command: str, program: str, shown: str) -> None:
    assert process_kinds.program(command.split(" ") if command else []) == program
    assert process_kinds.shown(command.split(" ") if command else []) == shown


TRAIN = ["python", "train.py"]


@pytest.mark.parametrize(
    ("name", "command", "worker"),
    [
        ("pt_data_worker", ["something"], True),
        ("python", TRAIN, True),
        ("python", ["python", "other.py"], False),
        ("python", ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle=7)"], True),
        ("python", ["python", "--multiprocessing-fork", "7"], True),
        ("python", ["python", "-c", "from multiprocessing.resource_tracker import main;main(5)"], False),
        ("git", ["git", "status"], False),
        ("python", [], False),
    ],
)
def test_a_child_is_a_worker_by_its_name_or_by_how_it_was_made(name: str, command: list[str], worker: bool) -> None:
    assert process_kinds.is_worker(name, command, TRAIN) is worker


@pytest.mark.parametrize(
    ("command", "training"),
    [
        ("python train.py", True),
        ("python run_sft.py", True),
        ("python finetune_lora.py", True),
        ("python /opt/bin/torchrun main.py", True),
        ("python /opt/bin/llamafactory-cli train a.yaml", True),
        ("python /opt/bin/llamafactory-cli webui", False),
        ("python -m axolotl.cli.train a.yaml", True),
        ("python constrained.py", False),
        ("python /opt/bin/tensorboard --logdir train", False),
        ("python /opt/bin/lorawatch tail train", False),
        ("python -c train", False),
    ],
)
def test_a_training_is_told_by_its_name(command: str, training: bool) -> None:
    assert process_kinds.looks_like_training(command.split()) is training
