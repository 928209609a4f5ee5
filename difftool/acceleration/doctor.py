"""What torch can do on this machine, tried out: what `platforms.doctor` asks, and every attention backend of a recipe.

`python -m difftool.acceleration.doctor` writes JSON lines to stdout, one before and one after each question: a kernel
that takes the process down leaves what was found before it, and the question that it could not answer.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from difftool.attention import BACKENDS, FLEX, SPECIALISED, Needs, faults
from difftool.platforms.base import current
from difftool.platforms.doctor import DTYPES, FAILURES, Found, questions, reason

HEAD = 64  # the width of a head that is tried


def main() -> int:
    """Answers every question; 0. Nothing but JSON lines reaches stdout, whatever a library prints."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="difftool-") as folder:  # what is compiled is compiled anew, and not kept
        os.environ.update(TORCHINDUCTOR_CACHE_DIR=folder, TRITON_CACHE_DIR=folder, TORCHINDUCTOR_COMPILE_THREADS="1")
        for name, answer in (*questions(), *attention_questions()):
            answers.write(json.dumps({"asks": name}) + "\n")
            answers.write(json.dumps({"name": name, "found": answer()}) + "\n")
    return 0


def attention_questions() -> Iterator[tuple[str, Callable[[], Found]]]:
    """Those most likely to take the process down come last of all; torch's own comes first of them."""
    for name in BACKENDS:
        yield f"attention {name}", partial(attention, name)


def attention(name: str) -> Found:
    """A small forward in the precision of the denoiser, unless it is known beforehand what is missing, and how to
    install it.
    """
    platform = current("auto")
    precision = platform.default_precision("denoising")
    try:
        from difftool.acceleration.attention import kernel_fault, site_of
        from difftool.acceleration.attention.trial import probe
    except FAILURES as error:
        return {"error": reason(error)}
    package = BACKENDS[name].package
    missing = {"install": package.install} if package is not None and package.fault() else {}
    site, dtype = site_of(platform, precision), DTYPES[precision]
    fault = "; ".join(faults(name, site, Needs(HEAD, video=True)))
    fault = fault or probe(name, platform.device, dtype, HEAD)
    if fault:
        return {"error": fault, **missing}
    if name not in SPECIALISED:
        return {}
    slower = kernel_fault(name, HEAD, platform, site)
    return {"kernel": FLEX, "because": slower} if slower else {"kernel": SPECIALISED[name][0]}


if __name__ == "__main__":
    sys.exit(main())
