"""`retry_temperatures`: a window with a suspect text is transcribed again with sampled tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_whisper
from hearing import label, sound

TEMPERATURES = [0.5, 1.0, 1.5, 2.0]
SOUNDS = [sound(1.0, 300), sound(1.0, 500), sound(1.0, 700)]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def stamping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("stamping"), timestamps=True)


@pytest.fixture(scope="module")
def greedy(whisper: Path) -> list[Any]:
    return label(whisper, *SOUNDS, min_score=None)


def chars_per_s(row: dict[str, Any]) -> float:
    return max(segment["chars_per_s"] for segment in row["segments"])


def retried(whisper: Path, *sounds: Any, max_chars_per_s: float, **options: Any) -> list[Any]:
    return label(
        whisper,
        *sounds,
        min_score=None,
        max_chars_per_s=max_chars_per_s,
        **{"retry_temperatures": TEMPERATURES, **options},
    )


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"timestamps": "word"}, {"timestamps": "segment"}]
)
def test_a_suspect_text_gives_way_to_the_first_that_is_not(
    whisper: Path, stamping: Path, options: dict[str, Any]
) -> None:
    whisper = stamping if "timestamps" in options else whisper
    first = label(whisper, *SOUNDS, min_score=None, **options)
    too_fast = [chars_per_s(row) - 0.5 for row in first]
    for wave, before, limit in zip(SOUNDS, first, too_fast, strict=True):
        [after] = retried(whisper, wave, max_chars_per_s=limit, **options)
        if after["redone"]:
            assert after["suspect"] == [] and after["text"] != before["text"]
            assert chars_per_s(after) <= limit
        else:
            assert after["text"] == before["text"] and after["suspect"] == ["too_fast"]
    assert "redone" not in first[0]


def test_a_retried_text_depends_on_its_own_sound_alone(whisper: Path, greedy: list[Any]) -> None:
    limit = max(map(chars_per_s, greedy)) - 0.5  # so that at least one is transcribed again
    together = retried(whisper, *SOUNDS, max_chars_per_s=limit)
    alone = [retried(whisper, wave, max_chars_per_s=limit)[0] for wave in SOUNDS]
    turned = retried(whisper, *SOUNDS[::-1], max_chars_per_s=limit)[::-1]
    texts = [[(row["text"], row["redone"]) for row in rows] for rows in (together, alone, turned)]
    assert texts[0] == texts[1] == texts[2]
    assert any(row["redone"] for row in together)


def test_texts_that_are_not_suspect_or_stay_so_are_the_first(
    whisper: Path, greedy: list[Any]
) -> None:
    for limit in (1e6, 1e-6):
        rows = retried(whisper, *SOUNDS, max_chars_per_s=limit)
        assert [row["text"] for row in rows] == [row["text"] for row in greedy]
        assert [row["redone"] for row in rows] == [False] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry_temperatures": [0.4, 0.2]}, "expected rising numbers over 0 and up to 2"),
        ({"retry_temperatures": [0.0, 0.2]}, "expected rising numbers over 0"),
        ({"retry_temperatures": [0.2], "generate": {"do_sample": True}}, "beside generate.do_sam"),
    ],
)
def test_temperatures_that_make_no_sense_are_refused(
    whisper: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"retry_temperatures: .*{message}"):
        label(whisper, **options)
