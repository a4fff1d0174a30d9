"""Kills at random moments and full disks: the weights are those of an uninterrupted run, to the last bit."""

import random
import signal
import time

import pytest

from .campaign import GRACEFUL, OPTIONS, Life, command, delay, disks_can_be_mounted, meet_a_full_disk, pictures
from .processes import _CONTEXT
from .test_processes import parquet_folder

KILLS = 8  # of each kind of run
DISKS = 24


def write_config(folder, data: str, workers: int, steps: int):
    folder.mkdir(exist_ok=True)
    source = folder / data
    if not source.exists():
        (pictures if data == "images" else parquet_folder)(source)
    config = folder / f"{data}-{workers}.yaml"
    streaming = "false" if data == "images" else "true"
    config.write_text(OPTIONS.format(dataset=source, streaming=streaming, workers=workers, steps=steps))
    return config


def written(run, count: int) -> list[bytes]:
    names = ["model.safetensors", *(f"image_ids-{rank}.jsonl" for rank in range(count))]
    return [(run / name).read_bytes() for name in names]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data", ["images", "parquet"])
def test_a_run_killed_at_any_moment_loses_nothing(tmp_path, count, workers, data):
    config = write_config(tmp_path / "data", data, workers, steps=12)
    log = tmp_path / "log"
    for run in (tmp_path / "warm", tmp_path / "whole"):  # the first one warms caches up
        whole = Life(command(run, config), log, count)
        assert whole.statuses() == [0] * count, log.read_text()
        duration = time.monotonic() - whole.started
    expected = written(tmp_path / "whole", count)

    rng = random.Random(f"{count} {workers} {data}")
    kills, runs, ends = 0, 0, []
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"run-{runs}"
        finished = False
        while not finished:
            log = tmp_path / f"log-{runs}-{len(ends)}"
            life = Life(command(run, config), log, count)
            number = rng.choice([signal.SIGKILL, signal.SIGKILL, *GRACEFUL])
            only = rng.choice([None, *range(count)])
            if kills < KILLS:
                time.sleep(delay(rng, duration))
                life.send(number, only)
            statuses = life.statuses()
            finished = statuses == [0] * count
            kills += not finished
            ends.append((number.name, only, statuses))
            said = log.read_text() if log.exists() else ""
            assert "Traceback" not in said, (ends, said)
            assert finished or kills <= KILLS + 1, (ends, said)
        assert written(run, count) == expected, ends
        assert not list(run.glob(".unfinished*")) and not (run / ".lock").exists()
    print(f"{kills} kills of {runs} runs of {duration:.1f} s: {ends}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_disk_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = _CONTEXT.Process(target=disks_can_be_mounted, args=(str(disk),))
    probe.start()
    probe.join()
    if probe.exitcode:
        pytest.skip("this system lets no process mount a disk of its own")
    config = write_config(tmp_path / "data", "images", workers=0, steps=4)
    whole = tmp_path / "whole"
    assert Life(command(whole, config), tmp_path / "log").statuses() == [0], (tmp_path / "log").read_text()
    size_of_run = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    outcomes = []
    for number in range(DISKS):
        log = tmp_path / f"log-{number}"
        size = int(size_of_run * (number + 1) / DISKS * 1.25)
        args = (str(disk), size, str(config), str(log), str(whole / "model.safetensors"))
        process = _CONTEXT.Process(target=meet_a_full_disk, args=args)
        process.start()
        process.join(120)
        assert process.exitcode == 0, (size, log.read_text())
        outcomes.append(log.read_text().splitlines()[-1])
    print(f"{outcomes.count('full')} full disks, {outcomes.count('fits')} that were large enough")
    assert outcomes.count("full") >= 20
