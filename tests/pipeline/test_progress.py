import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import pipeline.progress as p, time, sys
p.MINUTE = float(sys.argv[1])
for _ in p.progress(range(30), total=30, desc="resize 00000"):
    time.sleep(0.02)
"""


def run_progress(minute: float) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE, str(minute)], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_a_log_gets_a_progress_line_every_minute():
    lines = run_progress(0.2)
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("resize 00000:") and "images/s" in line for line in lines)
    assert "\r" not in "".join(lines)


def test_a_step_shorter_than_a_minute_logs_no_progress():
    assert run_progress(60) == []
