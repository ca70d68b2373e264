"""A run directory of each format that was ever written: it must be read from then on.

Each folder is called as its format, and holds

- ``run/``: the run directory as the code of its time wrote it; only ``output-dir`` in ``config.toml`` was changed, to
  ``run``, since it named the place where it was made;
- ``images.npz``: a few images, with their classes;
- ``expected.json``: what that code said of these images: the most probable class and its probability by each model,
  the expert that the gate chose, and the cluster that a client with these data joins.

``python -m tests.stored_runs`` makes the folder of the format that this code writes. Run it once for each format, in
the commit that raises `disue.files.RUN_FORMAT`. A folder that is there is never made anew.
"""
