"""The part of the build that pyproject.toml cannot say: which Cython modules, with which directives and flags.

Environment switches, all off by default:

``KVSIM_DEBUG=1``     bounds checks, and the core's own conservation checks (``-DKVSIM_DEBUG=1``)
``KVSIM_TRACE=1``     line tracing, for coverage of the Cython code
``KVSIM_SANITIZE=1``  AddressSanitizer, UndefinedBehaviorSanitizer and the conservation checks

Each combination builds in a folder of its own; going back to another one in place needs ``--force``.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SWITCHES = [name for name in ("DEBUG", "TRACE", "SANITIZE") if os.environ.get(f"KVSIM_{name}", "0") not in ("", "0")]
DEBUG, TRACE, SANITIZE = (name in SWITCHES for name in ("DEBUG", "TRACE", "SANITIZE"))
BUILD = "/".join(["build", "-".join(SWITCHES).lower() or "plain"])

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": True,
    "linetrace": TRACE,
}

if sys.platform == "win32":
    flags, link_flags = ["/O2", "/fp:precise"], []
else:
    # No fast-math, no contraction, no native tuning: the same bits on every platform. The -Wno- flags name what
    # the C that Cython generates cannot avoid.
    flags = ["-O3", "-g0", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    flags += ["-Wno-unused-function", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
    link_flags = []
    if SANITIZE:
        link_flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", *link_flags]

macros = [("KVSIM_DEBUG", str(int(DEBUG or SANITIZE)))]
if TRACE:
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]

sources = sorted(path.as_posix() for path in Path("kvsim_core").rglob("*.pyx"))
if not sources:
    sys.exit("setup.py: no kvsim_core/**/*.pyx here: run it from the root of a complete source tree")

modules = [
    Extension(
        source.removesuffix(".pyx").replace("/", "."),
        [source],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link_flags,
    )
    for source in sources
]

setup(
    ext_modules=cythonize(
        modules,
        compiler_directives=DIRECTIVES,
        emit_linenums=DEBUG or SANITIZE,
        build_dir=None if TRACE else f"{BUILD}/cython",  # Cython's coverage plug-in looks beside the .pyx
        force=bool(SWITCHES),
        # A start method that imports this file again would build again in each worker.
        nthreads=(os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0,
    ),
    options={"build": {"build_base": BUILD}, "build_ext": {"parallel": os.cpu_count(), "force": bool(SWITCHES)}},
)
