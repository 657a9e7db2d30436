"""Check what was built: `contents SDIST WHEEL` before it is installed, `installed` in the environment that has it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

WHEEL_MOST_BYTES = 3_000_000
INSTALL_MOST_BYTES = 60_000_000
IMPORT_MOST_S = 0.3


def contents(sdist: str, wheel: str) -> None:
    """Check that both carry the extension, and that the wheel is small."""
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        built = set(archive.namelist())
    modules = {name.removesuffix(".pyx") for name in source if name.startswith("kvsim_core") and name.endswith(".pyx")}
    libraries = {name.partition(".")[0] for name in built if name.endswith((".so", ".pyd"))}
    assert modules, f"{sdist}: found no .pyx"
    assert modules == libraries, f"{wheel}: found {sorted(libraries)}, expected {sorted(modules)}"
    shipped = {
        name for name in source if name.startswith("kvsim") and name.endswith((".pxd", ".pyi", ".toml", "py.typed"))
    }
    assert shipped <= built, f"{wheel}: lacks {sorted(shipped - built)}"
    unwanted = {name for name in source | built if name.endswith((".c", ".pyc")) or "build/" in name}
    unwanted |= {name for name in built if name.startswith(("tests", "bench"))}
    assert not unwanted, f"found {sorted(unwanted)}, expected none of them in a distribution"
    size = Path(wheel).stat().st_size
    print(f"wheel: {size / 1e6:.2f} MB, {len(libraries)} extension modules (limit {WHEEL_MOST_BYTES / 1e6:.0f} MB)")
    assert size < WHEEL_MOST_BYTES


def installed() -> None:
    """Check how much the base install brings beyond NumPy, and how long `import kvsim` takes."""
    place = Path(sysconfig.get_paths()["purelib"])
    sizes: dict[str, int] = {}
    for entry in place.iterdir():
        name = entry.name.lower()
        if not name.startswith(("numpy", "pip", "setuptools", "_distutils", "distutils", "pkg_resources", "wheel")):
            files = entry.rglob("*") if entry.is_dir() else [entry]
            sizes[entry.name] = sum(file.stat().st_size for file in files if file.is_file())
    total = sum(sizes.values())
    largest = ", ".join(f"{name} {sizes[name] / 1e6:.1f}" for name in sorted(sizes, key=sizes.get, reverse=True)[:5])
    print(f"base install beyond NumPy: {total / 1e6:.1f} MB ({largest}; limit {INSTALL_MOST_BYTES / 1e6:.0f} MB)")
    assert total < INSTALL_MOST_BYTES
    for what, most in (("import kvsim", IMPORT_MOST_S), ("from kvsim import *", None)):
        clock = f"import time; t = time.perf_counter(); {what}; print(time.perf_counter() - t)"
        runs = [float(subprocess.check_output([sys.executable, "-c", clock])) for _ in range(5)]
        print(f"{what}: {min(runs):.3f} s" + (f" (limit {most} s)" if most else ""))
        assert most is None or min(runs) < most
    print(f"installed: kvsim {distribution('kvsim').version} in Python {sys.version.split()[0]}")


if __name__ == "__main__":
    {"contents": contents, "installed": installed}[sys.argv[1]](*sys.argv[2:])
