"""The process between the launcher and the ranks of one machine: `torch.distributed.run` that never listens.

`python -m difftool.parallel.agent --ranks N --folder FOLDER --parent PID -- COMMAND…` starts COMMAND N times, each time
with `--ranks-folder FOLDER --parent <its own pid>` behind it. Ranks that ended badly are listed in `failures.json`.
Without `--parent` it outlives the process that started it.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from difftool.platforms.host import die_with_parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="difftool.parallel.agent")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parent", type=int)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    if args.parent is not None:
        die_with_parent(args.parent)
    logging.disable()  # what it has to say is in failures.json
    return run_ranks(args.ranks, args.folder, args.command)


def run_ranks(ranks: int, folder: Path, command: Sequence[str]) -> int:
    """Runs the ranks to their end; 0 if every one of them ended with 0."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    own = ["--ranks-folder", str(folder), "--parent", str(os.getpid())]
    # c10d over a file: its usual store is a TCP server on every address
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={folder}/rendezvous", "--rdzv-conf=store_type=file"]
    place = ["--rdzv-id=difftool", "--local-addr=127.0.0.1", f"--log-dir={folder}/log"]
    options = [f"--nproc-per-node={ranks}", "--max-restarts=0", *rendezvous, *place, "--no-python"]
    try:
        run(parse_args([*options, *command, *own]))
    except ChildFailedError as error:
        failures = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in error.failures.items()]
        temporary = folder / "failures.tmp"
        temporary.write_text(json.dumps(failures))
        temporary.rename(folder / "failures.json")
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
