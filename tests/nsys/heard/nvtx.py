"""In place of the package `nvtx`, as nsys stands behind that: writes down every range that is opened."""

import json
import os


class annotate:
    def __init__(self, message):
        self.message = message

    def __enter__(self):
        with open(os.environ["NSYS_HEARD"], "a") as heard:
            heard.write(json.dumps([os.getpid(), self.message]) + "\n")

    def __exit__(self, *error):
        with open(os.environ["NSYS_HEARD"], "a") as heard:
            heard.write(json.dumps([os.getpid(), f"end of {self.message}"]) + "\n")
