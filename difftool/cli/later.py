"""Commands and flags that are planned and not there: named here, so that who types one is told so instead of a name
that looks like it. None of them is in the help.
"""

SERVE = "in Python, difftool.load(RECIPE) keeps a model loaded between calls"
TUNE = "difftool bench RECIPE --sweep KEY=A,B measures settings against each other"
PREDICTED = "difftool plan RECIPE predicts memory and what ranks send, without a flag"

# name -> what there is meanwhile
COMMANDS = {"serve": SERVE, "tune": TUNE}
FLAGS = {
    "--port": f"it belongs to difftool serve; {SERVE}",
    "--host": f"it belongs to difftool serve; {SERVE}",
    "--tier": f"it belongs to difftool tune; {TUNE}",
    "--cost": PREDICTED,
}
