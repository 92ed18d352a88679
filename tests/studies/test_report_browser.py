"""The report as a browser sees it: headless Chromium opens it, reads the table, and has nothing to complain of."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedjax_rai.studies.report import Wanted, write_report
from tests.studies.report_folders import SCRIPT, write_table
from tests.studies.test_report import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
pytestmark = pytest.mark.slow


@pytest.fixture
def browser() -> str:
    """`FEDJAX_RAI_BROWSER`, or what is installed under a usual name."""
    found = os.environ.get("FEDJAX_RAI_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, nor is FEDJAX_RAI_BROWSER set")
    return found


def opened(browser: str, page: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    """What the page is after it was opened, and what its console said."""
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
        "--window-size=390,844", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)


def test_a_browser_opens_the_page_and_reads_the_table(tmp_path, config, browser):
    page, *_ = write_report([write_table(tmp_path / "table", config)], Wanted(tmp_path / "page.html"))
    done = opened(browser, page, tmp_path / "profile")
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE", line)]
    assert not complaints, complaints
    seen = Page(done.stdout)
    assert seen.rows[1][:2] == ["fl", "0, 1"] and seen.rows[1][2].startswith("40.0 [")
    assert SCRIPT in seen.texts and "script" not in {tag for tag, _ in seen.tags}
    assert sum(tag == "svg" and given.get("class") == "picture" for tag, given in seen.tags) >= 8
