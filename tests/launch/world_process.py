"""One process of an outer launcher's world, or one machine of several: `difftool` with stand-in ranks, which behave as
the first argument says.
"""

import functools
import sys
from pathlib import Path

from difftool import launch
from difftool.cli import nodes
from difftool.cli.main import main
from difftool.launch import meeting, node_meeting

if __name__ == "__main__":
    behaviour, patience = sys.argv[1], float(sys.argv[2])
    meeting.COMING_S = node_meeting.COMING_S = nodes.COMING_S = patience
    worker = (sys.executable, str(Path(__file__).with_name("standin_rank.py")), behaviour)
    launch.run = functools.partial(launch.run, worker=worker)
    nodes.attend_node = functools.partial(nodes.attend_node, worker=worker)
    del sys.argv[1:3]
    sys.exit(main())
