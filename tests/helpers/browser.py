"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from jobs.bench.testbed import _apt
from jobs.models import cache, made_once

FONTS = ("fonts-dejavu-core", "fontconfig-config")  # its own, whatever fonts the machine has
LIBRARIES = (
    "lib/*-linux-gnu",
    "usr/lib/*-linux-gnu",
    "usr/lib/*-linux-gnu/*",
)  # pulseaudio/ has some


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window. It is the machine's own, or downloaded with apt and unpacked with
    dpkg, both without root."""
    binary, env = shutil.which("chromium"), dict(os.environ)
    if binary is None:
        root = made_once(cache() / "chromium", fetch)
        binary = str(root / "usr/lib/chromium/chromium")
        env |= {
            "LD_LIBRARY_PATH": ":".join(str(one) for glob in LIBRARIES for one in root.glob(glob)),
            "FONTCONFIG_SYSROOT": str(root),
            "FONTCONFIG_FILE": "/etc/fonts/fonts.conf",
        }
    # A container's user has no rights for Chromium's own sandbox, nor its root a use for it.
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=arguments, env=env)
        yield browser
        browser.close()


def fetch(folder: Path) -> None:
    """Unpack Chromium and what it needs beyond this machine's packages into a folder."""
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    only = ["--yes", "--download-only", "--no-install-recommends", "-o", "Debug::NoLocking=1"]
    subprocess.run(
        [*_apt(), "install", *only, "-o", f"Dir::Cache::archives={archives}", "chromium"],
        check=True,
        capture_output=True,
    )
    subprocess.run([*_apt(), "download", *FONTS], check=True, capture_output=True, cwd=archives)
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
    shutil.rmtree(archives)
