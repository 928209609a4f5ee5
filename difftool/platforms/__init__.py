"""The machine under a run: one module per kind of device, all with the same few questions."""
