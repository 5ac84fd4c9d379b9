"""A benchmark suite for a vision class: one recipe, one number, on any machine.

    import vision_tutorial as vt

    run = vt.train("quickstart", epochs=2)     # a Run: run.metrics, run.best, run.to_pandas()
    model = vt.load(run)                       # model.predict("image.png")
    vt.evaluate(run, tta="hflip")
    vt.compare(["runs"])                       # a table, in a notebook too

Importing the package imports no torch; the first call does.
"""

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load", "predict", "train"]

TYPE_CHECKING = False  # typing's own: torchrun reads this file, and imports nothing for it
if TYPE_CHECKING:
    from .api import compare, evaluate, load, predict, train


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "train":  # a module of that name is what torchrun starts; it can be called, too
        return import_module(".train", __name__)
    return getattr(import_module(".api", __name__), name)
