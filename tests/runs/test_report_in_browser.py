"""The report of a real run in a real browser: it plays, filters, obeys keys, and shows texts as texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import chromium
from checkpoints import tiny_classifier, tiny_whisper
from playwright.sync_api import Page
from runs import Job
from sounds import encode, tone

from jobs.cli import run

RTL = "\u202e"  # turns all that follows around
NAMES = [
    "plain.wav",
    "<img src=x onerror=window.hacked=1>.wav",
    "\"' onclick=window.hacked=2 '.wav",
    f"{RTL}vaw.wav",
    "{{ 7 * 7 }}.wav",
    "gone.wav",
    "broken.wav",
]
REFERENCES = [
    "it was the best of times",
    "</script><script>window.hacked=3</script>",
    "<svg onload=window.hacked=4>",
    "شكرا جزيلا",
    None,
    "nothing",
    "nothing",
]
LABELS = ("<b onmouseover=window.hacked=5>dog</b>", "cat & dog", "]]>", "{{ x }}", '"', "'", "\\")


class Opened(NamedTuple):
    """A report in a browser, and what the browser asked for and said meanwhile."""

    page: Page
    folder: Path
    rows: dict[str, dict[str, Any]]
    requests: list[str]
    messages: list[str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("report")
    whisper = tiny_whisper(folder / "whisper")
    classifier = tiny_classifier(folder / "classifier", "wav2vec2", LABELS)
    speech = {"task": "automatic-speech-recognition", "model": str(whisper), "reference": "text"}
    job = Job(
        folder,
        classifier,
        input={"path": str(folder / "list.jsonl")},
        tasks={
            "words": speech,
            "kind": {"task": "audio-classification", "model": str(classifier), "segments": True},
        },
        output={"path": str(folder / "table"), "keep": ["text"]},
        max_error_fraction=1,
    )
    for number, name in enumerate(NAMES):
        sound = encode(tone(0.5 + 0.4 * number, hz=200 + 90 * number), 16_000, "wav")
        (job.audio / name).write_bytes(sound[:50] if name == "broken.wav" else sound)
    entries = [
        {"audio_filepath": f"audio/{name}", "text": text}
        for name, text in zip(NAMES, REFERENCES, strict=True)
    ]
    (folder / "list.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    assert job.run().code == 0
    (job.audio / "gone.wav").unlink()
    assert run(["report", str(job.table)]) == 0
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        made = Path(f"{job.table}-report")
        page.goto((made / "index.html").as_uri())
        yield Opened(page, made, job.by_name(), requests, messages)
        # Whatever the tests did.
        assert not messages
        here = made.as_uri()
        away = [u for u in requests if not u.startswith((f"{here}/", "data:"))]
        assert len(requests) > len(NAMES) and not away


def until(page: Page, condition: str) -> None:
    """Wait for a condition of the page, whose policy lets nothing but its own script ask for it."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"expected {condition}")


def start(report: Opened) -> Page:
    """The page with nothing found, chosen or played."""
    report.page.evaluate("window.isOld = true")
    report.page.reload()  # which may return before the new page is there
    until(report.page, "!window.isOld && document.querySelector('#status').textContent !== ''")
    return report.page


def shown(page: Page) -> list[str]:
    """The names of the clips that are not hidden, in order."""
    return page.locator(".clip:visible h3").all_text_contents()


def test_every_clip_that_is_there_plays_for_as_long_as_it_was_labelled(report: Opened) -> None:
    page = start(report)
    lengths = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map((audio) =>
            new Promise((done, failed) => {
                audio.addEventListener("loadedmetadata", () => done(audio.duration));
                audio.addEventListener("error", () => failed(audio.error.message));
                audio.load();
            })))"""
    )
    labelled = [r["duration_s"] for name, r in report.rows.items() if name not in NAMES[-2:]]
    # Chromium counts the 6.5 ms that every Opus begins with, and does not play them.
    assert sorted(lengths) == pytest.approx(sorted(labelled), abs=0.0066)
    page.locator(".play").first.click()
    until(page, "document.querySelector('audio').currentTime > 0.1")
    assert page.locator(".clip.playing.current").count() == 1
    until(page, "document.querySelector('audio').ended")  # and stops by itself
    assert page.locator(".playing").count() == 0


def test_a_clip_without_sound_says_why(report: Opened) -> None:
    page = start(report)
    for name, why in (("gone.wav", "is gone"), ("broken.wav", "truncated: ")):
        clip = page.locator(".clip", has=page.locator("h3", has_text=name))
        assert why in (clip.text_content() or "") and clip.locator(".play").count() == 0


def test_pictures_and_charts_are_drawn(report: Opened) -> None:
    page = start(report)
    for image in page.locator(".sound img").all():
        image.scroll_into_view_if_needed()
    until(
        page,
        "[...document.querySelectorAll('.sound img')].every((i) => i.complete && i.naturalWidth === 1000)",
    )
    assert page.locator(".chart").count() == page.locator(".chart canvas").count() == 5
    inked = page.evaluate(
        """() => [...document.querySelectorAll(".chart canvas")].map((canvas) =>
            canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean))"""
    )
    assert all(inked)


def test_a_segment_leads_to_its_sound(report: Opened) -> None:
    page = start(report)
    piece = page.locator(".piece").last
    piece.scroll_into_view_if_needed()
    begin = float(piece.get_attribute("data-start") or "nan")
    piece.click()
    clip = page.locator(".clip.current")
    until(page, "!document.querySelector('.clip.current audio').paused")
    assert clip.locator(".piece").last.get_attribute("data-start") == piece.get_attribute(
        "data-start"
    )
    assert clip.locator("audio").evaluate("(audio) => audio.currentTime") >= begin


def test_lists_and_search_show_what_belongs_to_them(report: Opened) -> None:
    page = start(report)
    status = page.locator("#status")
    assert len(shown(page)) == len(NAMES) and status.inner_text() == f"{len(NAMES)} clips"
    page.locator(".list", has_text="truncated").click()
    assert shown(page) == ["broken.wav"]
    assert status.inner_text() == "1 clip of 1 in the table"
    page.locator(".list", has_text="all clips").click()
    page.fill("#find", "BEST OF TIMES")
    assert shown(page) == ["plain.wav"]
    page.fill("#find", "no such text")
    assert shown(page) == [] and status.inner_text().startswith("0 clips")
    page.keyboard.press("Escape")
    assert len(shown(page)) == len(NAMES)
    page.locator(".list", has_text="lowest scores").first.click()
    scores = [
        c.locator(".task .chip").first.text_content() for c in page.locator(".clip:visible").all()
    ]
    values = [float(score or "nan") for score in scores]
    assert len(values) == 6 and values == sorted(values)


def test_keys_choose_play_seek_and_find(report: Opened) -> None:
    page = start(report)
    order = shown(page)
    current = page.locator(".clip.current h3")
    page.keyboard.press("j")
    assert current.all_text_contents() == order[:1]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert current.all_text_contents() == order[1:2]
    page.fill("#find", "plain")
    page.keyboard.press("Enter")
    assert current.all_text_contents() == ["plain.wav"]
    page.keyboard.press(" ")
    until(page, "!document.querySelector('.current audio').paused")
    page.keyboard.press(" ")
    until(page, "document.querySelector('.current audio').paused")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.current .sound').ariaValueNow === '0.50'")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('.current .sound').ariaValueNow === '0.00'")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("j")  # into the field
    assert page.input_value("#find") == "plainj"
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    assert page.locator(".list[aria-pressed=true]").inner_text() != "all clips"
    page.keyboard.press("[")
    assert "all clips" in page.locator(".list[aria-pressed=true]").inner_text()


def test_hostile_texts_are_shown_as_texts(report: Opened) -> None:
    page = start(report)
    names = shown(page)
    assert {*NAMES} - {NAMES[3]} <= {*names}
    assert r"\u202evaw.wav" in names  # instead of turning the page around
    body = page.locator("body").text_content() or ""
    for text in (
        LABELS[0],
        *["<svg", "onload=window.hacked=4>"],
        "</script><script>window.hacked=3</script>",
    ):
        assert text in body
    assert page.evaluate("window.hacked") is None
    counts = page.evaluate(
        """() => ["script", "svg", "[onerror]", "[onclick]", "[onload]", "[onmouseover]", "b[onmouseover]"]
            .map((selector) => document.querySelectorAll(selector).length)"""
    )
    assert counts == [3, 0, 0, 0, 0, 0, 0]
    # Even if a text became a script, the page's policy would not let it run.
    page.evaluate(
        """() => { const script = document.createElement("script");
            script.textContent = "window.hacked = 6"; document.body.append(script); }"""
    )
    assert page.evaluate("window.hacked") is None
    [refused] = report.messages
    assert "Content Security Policy" in refused
    report.messages.clear()


def test_it_is_dark_where_everything_is_and_fits_a_phone(report: Opened) -> None:
    page = start(report)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
