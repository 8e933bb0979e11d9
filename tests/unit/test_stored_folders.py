"""A store's folder is listed in parts, which find what one listing finds; models on stores."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from botocore.utils import parse_timestamp
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from s3 import MANY, S3, s3  # noqa: F401  # the fixture
from s3_proxy import flaky

from audio_ops.errors import ClipError
from jobs.input import Input
from jobs.models import fetch
from jobs.sources import load_source, manifest
from jobs.sources._stored_folders import common_prefixes, stored_files, time_of

PAGE = 5  # keys of an answer, in place of 1,000
ODD = ["a b+c&d=%41[1] \N{HEADPHONE}#x?y::z.wav", "x//y.wav", "x/", "x.wav/x.wav", "é/ü.wav", ".w"]
SHAPES = {
    "flat": [f"{n:03}.wav" for n in range(300)],
    "small": ["0.wav", "a/1.wav", "a/b/2.wav"],
    "few folders": [f"{n % 7}/{n:03}.wav" for n in range(200)],
    "many folders": [f"{n % 90:02}/{n:03}.wav" for n in range(270)],
    "a folder for each": [f"{n:03}/x.wav" for n in range(200)],
    "a chain": [f"{'d/' * (n // 9)}{n}.wav" for n in range(150)],
    "folders beside files": [f"{n:03}{'/x' * (n % 4 == 0)}.wav" for n in range(200)],
    "odd": [
        *(f"{folder}{name}" for folder in ("", "deep/", "deep//", "\x01/") for name in ODD),
        *(f"{'界面語言'[n % 4]}{n % 50}/{n}.wav" for n in range(150)),
    ],
    "unlike": [
        "/".join(random.Random(n).choices(["a", "ab", "b", "a-", "c c"], k=n % 6 + 1)) + f"/{n}.wav"
        for n in range(200)
    ],
}


@pytest.fixture(scope="module")
def bucket(s3: S3) -> str:
    """A folder for each of the shapes, and something beside each."""
    s3.bucket("shapes")
    files = {
        f"shapes/{shape}{key}": b"x" * (n % 3)
        for shape, keys in SHAPES.items()
        for n, key in enumerate([*(f"/{key}" for key in keys), "-beside.wav", "2/beside.wav"])
    }
    s3.files().pipe(files)
    return "shapes"


def by_pages(s3: S3, **options: Any) -> Any:
    options = {"use_listings_cache": False, **s3.resolved, **options}
    return fsspec.filesystem("s3", s3_additional_kwargs={"MaxKeys": PAGE}, **options)


def essence(infos: Iterator[dict[str, Any]]) -> list[Any]:
    names = ("name", "size", "ETag", "LastModified", "type")
    return sorted(tuple(info[name] for name in names) for info in infos)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_a_folder_have_what_one_listing_has(
    s3: S3, bucket: str, shape: str, in_order: bool
) -> None:
    fs, root = by_pages(s3), f"{bucket}/{shape}"
    before = len(s3.asked(bucket))
    found = list(stored_files(fs, root, print, in_order=in_order))
    asked = len(s3.asked(bucket)) - before
    assert essence(iter(found)) == essence(s3.files().find(root, detail=True).values())
    assert len(found) == len(SHAPES[shape])
    pages = -(-len(found) // PAGE)
    most = {"flat": pages + 1, "small": 1, "few folders": 2 * pages}.get(shape, 2 * pages + 40)
    assert pages <= asked <= (pages if in_order else most)


@pytest.mark.parametrize(
    "value",
    [
        *("2026-11-30T19:26:03.000Z", "2026-11-30T19:26:03Z", "2026-11-30T19:26:03.25Z"),
        *(
            "2026-11-30T19:26:03+02:00",
            "Mon, 30 Nov 2026 19:26:03 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
        ),
        *("20261130", "1796066763", "1796066763.25", 1796066763, 1796066763.5, "20261130T192603Z"),
    ],
)
def test_times_are_those_that_botocore_reads(value: Any) -> None:
    assert time_of(value) == parse_timestamp(value)


def prefixes(s3: S3, bucket: str, start: int) -> Counter[str]:
    """How often each beginning of keys was asked for."""
    asked = s3.asked(bucket)[start:]
    queries = [parse_qs(urlsplit(it.path.replace("#", "%23")).query) for it in asked]
    return Counter(query.get("prefix", [""])[0] for query in queries)


def test_folders_are_listed_side_by_side_and_many_by_their_beginnings(s3: S3, bucket: str) -> None:
    for shape, least, most in (("few folders", 8, 8), ("many folders", 10, 45)):
        start = len(s3.asked(bucket))
        list(stored_files(by_pages(s3), f"{bucket}/{shape}", print))
        assert least <= len(prefixes(s3, bucket, start)) <= most


def test_a_whole_bucket_and_a_bucket_of_one_page_are_found(s3: S3, bucket: str) -> None:
    fs = by_pages(s3)
    assert essence(stored_files(fs, bucket, print)) == essence(
        fs.find(bucket, detail=True).values()
    )
    s3.bucket("empty")
    assert list(stored_files(fs, "empty", print)) == []


def test_a_part_that_cannot_be_listed_is_no_empty_part(tmp_path: Path, s3: S3, bucket: str) -> None:
    with flaky(s3, tmp_path / "log", denies="403 few folders/4/") as proxy:
        fs = by_pages(proxy.s3)
        with pytest.raises(PermissionError):
            list(stored_files(fs, f"{bucket}/few folders", print))
        assert len(list(stored_files(fs, f"{bucket}/flat", print))) == len(SHAPES["flat"])


def test_the_packagings_find_what_the_listing_has(s3: S3, bucket: str) -> None:
    s3.files().pipe({f"{bucket}/tars/{n % 9}/{n}.tar": b"x" for n in range(60)})
    for format, extension in (("files", "wav"), ("webdataset", "tar")):
        options = {**s3.resolved, "s3_additional_kwargs": {"MaxKeys": PAGE}}
        paths = (f"s3://{bucket}", f"s3://{bucket}/odd", f"s3://{bucket}/odd/deep")
        listing = load_source(format).find(
            Input(path=paths, format=format, storage_options=options), print
        )
        names = [
            f"s3://{name}"
            for name in sorted(s3.files().find(bucket))
            if name.endswith(f".{extension}") and "/." not in name
        ]
        assert listing.clips["source"].to_pylist() == names
        assert listing.clips["source_version"].null_count == 0
        if format == "files":
            assert listing.passed_over[".tar"] == 60


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_list_may_name_files_by_any_scheme_of_the_store(s3: S3, scheme: str) -> None:
    s3.bucket(bucket := f"listed-by-{scheme}")
    names = [f"{bucket}/x/{n} ü+%20.wav" for n in range(5)]
    lines = "".join(json.dumps({"path": f"{scheme}://{name}"}) + "\n" for name in names)
    s3.files().pipe(dict.fromkeys(names, b"x") | {f"{bucket}/all.jsonl": lines.encode()})
    input = Input(
        path=f"s3://{bucket}/all.jsonl",
        format="manifest",
        audio_allow=(f"{scheme}://{bucket}",),
        storage_options=s3.resolved,
    )
    found = list(load_source("manifest").clips(manifest.find(input, print).clips, input))
    assert [file.read() for _, file in found if not isinstance(file, ClipError)] == [b"x"] * 5


def test_a_store_without_parts_streams_in_few_requests(s3: S3) -> None:
    before = len(s3.asked(MANY))
    fs = fsspec.filesystem("s3", use_listings_cache=False, **s3.resolved)
    infos = stored_files(fs, f"{MANY}/clips", print, in_order=True)
    names = [next(infos)["name"] for _ in range(1500)]
    infos.close()
    assert names == sorted(names) and len(s3.asked(MANY)) - before <= 3


class Tree(MemoryFileSystem):
    """A store whose folders are requests, one of which fails, and one of which goes away."""

    protocol = "tree"
    fails: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    find = AbstractFileSystem.find

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if path in self.fails:
            raise PermissionError(path)
        if path in self.gone:
            raise FileNotFoundError(path)
        return super().ls(path, detail=detail, **kwargs)


class AsyncTree(AsyncFileSystem):  # type: ignore[misc]
    """A `Tree` that several threads ask at once."""

    protocol = "atree"
    cachable = False

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.tree = tree

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return self.tree.ls(path, detail=detail, **kwargs)

    async def _info(self, path: str, **kwargs: Any) -> Any:
        return self.tree.info(path, **kwargs)


class Flat(MemoryFileSystem):
    """A store that only knows how to find."""

    protocol = "flat"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        raise NotImplementedError

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, **kwargs: Any) -> Any:
        tree = MemoryFileSystem()
        return tree.find(path, **kwargs)


@pytest.fixture
def tree() -> Iterator[Tree]:
    tree = Tree(skip_instance_cache=True)
    keys = [*SHAPES["unlike"], *SHAPES["few folders"], "[x] é#?&.wav", "e m p/t y/x.wav"]
    for key in keys:
        tree.pipe_file(f"/tree root/{key}", key.encode())
    yield tree
    tree.fails = tree.gone = ()
    tree.rm("/tree root", recursive=True)


@pytest.mark.parametrize("kind", ["one by one", "side by side", "find alone"])
def test_other_stores_are_listed_as_they_can_be(tree: Tree, kind: str) -> None:
    fs: Any = {
        "one by one": lambda: tree,
        "side by side": lambda: AsyncTree(tree),
        "find alone": lambda: Flat(skip_instance_cache=True),
    }[kind]()
    expected = tree.find("/tree root", detail=True)
    found = list(stored_files(fs, "/tree root", print))
    assert sorted(info["name"] for info in found) == sorted(expected)
    assert all(info == expected[info["name"]] for info in found)
    if kind == "find alone":
        return
    tree.fails = ("/tree root/a/ab",)
    assert len(fs.find("/tree root")) < len(expected)  # which is why it is not asked
    with pytest.raises(PermissionError):
        list(stored_files(fs, "/tree root", print))
    tree.fails, tree.gone = (), ("/tree root/5",)
    warnings: list[str] = []
    rest = list(stored_files(fs, "/tree root", warnings.append))
    gone = [name for name in expected if name.startswith("/tree root/5/")]
    assert len(rest) == len(expected) - len(gone) and gone
    assert warnings == ["can't list /tree root/5: it is gone"]


def test_a_memory_is_a_store(tree: Tree) -> None:
    clips = (
        load_source("files").find(Input(path="memory://tree root/a", format="files"), print).clips
    )
    assert clips["source"].to_pylist() == sorted(
        f"memory://{name}" for name in tree.find("/tree root/a")
    )


@pytest.mark.parametrize("enough", [1, 4, 32, 1000])
def test_each_name_has_one_beginning(enough: int) -> None:
    for names in (
        [],
        ["x/"],
        [f"speaker-{n:04}/" for n in range(500)],
        [f"{chr(0x4E00 + n)}/" for n in range(200)],
        ["a/", "ab/", "a-/", "a/b/", "b/"][: 5 if enough == 1000 else 3],
    ):
        if "a/b/" in names:
            names.remove("a/b/")
        parts = common_prefixes(names, enough)
        owners = [[part for part in parts if name.startswith(part)] for name in names]
        assert all(len(own) == 1 for own in owners)
        assert all(any(name.startswith(part) for name in names) for part in parts)
        if len(names) <= enough:
            assert sorted(parts) == sorted(names)


def test_a_model_trained_further_is_fetched_from_a_store_that_has_no_etags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights have the size that they had before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = fsspec.filesystem("memory")
    store.pipe_file("/trained/config.json", b"{}")
    copies = []
    for weights in (b"1234", b"4321"):
        store.pipe_file("/trained/model.safetensors", weights)
        copies.append(Path(fetch("memory://trained", {}).name) / "model.safetensors")
    assert [copy.read_bytes() for copy in copies] == [b"1234", b"4321"]


class BrokenStore(AbstractFileSystem):  # type: ignore[misc]
    """A store whose client raises errors of its own, as those of the hub, Google and Azure do."""

    protocol = "broken"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        raise type("ClientError", (Exception,), {})("no credentials")


def test_a_store_of_models_that_does_not_answer_is_named() -> None:
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    with pytest.raises(FileNotFoundError, match="model folder at broken://m: no credentials"):
        fetch("broken://m", {})
