"""What the scripts share that kill runs at random moments and compare what they leave behind."""
import subprocess
import time


def undisturbed(command, **options):
    """Runs a command to its end; the seconds it took."""
    started = time.monotonic()
    subprocess.run(command, check=True, **options)
    return time.monotonic() - started


def kill_after(processes, seconds):
    """Kills what still runs after so many seconds; how many that were. A run that failed by itself ends the script."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.005)
    kills = 0
    for process in processes:
        if process.poll() is None:
            process.kill()
            kills += 1
        elif process.returncode != 0:
            raise SystemExit(f"a run ended by itself with status {process.returncode}")
        process.wait()
    return kills


def same(one, other):
    """Two dictionaries of names and contents must be equal."""
    if one.keys() != other.keys():
        raise SystemExit(f"other files: {sorted(one)} and {sorted(other)}")
    for name in one:
        if one[name] != other[name]:
            raise SystemExit(f"{name} DIFFERS")
        print(f"{name}: the same bytes")
