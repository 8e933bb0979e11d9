"""Importing torch and transformers without what only training and compiling need.

transformers imports scipy.optimize for the losses of object detection, torch.distributed for models
that are split across GPUs, and torch._dynamo for decorators that a compiler reads. It reads the names
in its 3,000 files twice, as its cache holds 128 of 549 folders. torch replaces its kernels for the
device "meta", on which transformers creates a model before it loads the weights, with kernels in
Python, which import sympy.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

POSTPONED = (
    "scipy.optimize",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)
# Kernels in Python for the device "meta", which a compiler needs.
META_KERNELS = "torch._meta_registrations"
# Modules that count on them, or run in a circle if they are imported before them.
USERS_OF_KERNELS = (
    *("torch._decomp", "torch._dynamo", "torch._functorch.aot_autograd"),
    *("torch._inductor", "torch._prims", "torch._refs", "torch.utils._content_store"),
)
# The modules of transformers that import POSTPONED ones, and that every model imports.
IMPORTERS = ("transformers.modeling_utils", "transformers.masking_utils")


def import_transformers(device: str) -> None:
    """Import torch, and what every model of transformers imports, with the POSTPONED modules postponed.

    On CPUs, where transformers compiles nothing, also without META_KERNELS. If transformers does more
    with the modules at its import than naming and decorating, it is imported as it is, when a model
    asks for it.
    """
    if device == "cpu" and "torch" not in sys.modules:
        with postponed([META_KERNELS]):
            import_module("torch")
        sys.meta_path.insert(0, _MetaKernelsFirst())
    with unbounded_caches():
        import_module("transformers")
    before = set(sys.modules)
    try:
        with postponed():
            for name in IMPORTERS:
                import_module(name)
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "transformers":
                del sys.modules[name]


def import_meta_kernels() -> bool:
    """Import META_KERNELS, if they are not; returns whether they were not."""
    were_postponed = META_KERNELS not in sys.modules
    import_module(META_KERNELS)
    return were_postponed


@contextmanager
def unbounded_caches() -> Iterator[None]:
    """Inside of the `with`, functions defined with a bare `@lru_cache` remember all their results.

    transformers calls `create_import_structure_from_path` for all its folders in turn, and then again:
    a cache of fewer has always just dropped the next one.
    """
    bounded = functools.lru_cache

    def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
        return bounded(None)(maxsize) if callable(maxsize) else bounded(maxsize, typed)

    functools.lru_cache = lru_cache  # type: ignore[assignment]
    try:
        yield
    finally:
        functools.lru_cache = bounded


@contextmanager
def postponed(modules: Sequence[str] = POSTPONED) -> Iterator[None]:
    """Inside of the `with`, imports of these modules give modules of `PostponedName`s.

    Modules that are already imported stay as they are. After the `with`, imports are real again.
    """
    finder = _Finder(modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _PostponedModule):
                del sys.modules[name]  # `torch.distributed.tensor` stays an attribute of its parent


class PostponedName(type):
    """The type of a class that takes the place of a name in a postponed module.

    As a decorator inside of `postponed` it leaves the function as it is. Later it is called like the
    real one, which is then imported. Nothing is an instance of it before the real one is imported.
    """

    def _real(cls) -> Any:
        return getattr(import_module(cls.__module__), cls.__name__)

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        if not _is_postponing():
            return cls._real()(*args, **settings)
        return args[0] if args and callable(args[0]) else lambda decorated: decorated

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, value: Any) -> bool:
        module = sys.modules.get(cls.__module__)
        is_real = module is not None and not isinstance(module, _PostponedModule)
        return is_real and isinstance(value, cls._real())


class _PostponedModule(ModuleType):
    """A module in which, inside of `postponed`, every name is a `PostponedName`; later the real one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not _is_postponing():
            return getattr(import_module(self.__name__), name)
        return PostponedName(name, (), {"__module__": self.__name__})


def _is_postponing() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


class _MetaKernelsFirst:
    """Imports META_KERNELS before the first of USERS_OF_KERNELS."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if META_KERNELS not in sys.modules and name in USERS_OF_KERNELS:
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        pass

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        del sys.modules[name]  # what takes its place is what the importer gets
        import_module(META_KERNELS)
        import_module(name)


class _Finder:
    """Finds modules that are postponed, and those below them, unless they are imported."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if any(f"{name}.".startswith(f"{unused}.") for unused in self.modules):
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PostponedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
