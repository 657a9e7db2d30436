"""A package of a third party: one policy in Cython, built against the installed kvsim."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="kvsim-mru",
    version="1.0",
    ext_modules=cythonize(
        [Extension("kvsim_mru", ["kvsim_mru.pyx"])],
        compiler_directives={"language_level": 3, "boundscheck": False, "wraparound": False},
    ),
    entry_points={"kvsim.policies": ["mru = kvsim_mru:MRU"]},
)
