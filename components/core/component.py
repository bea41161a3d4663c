"""The decorator of every KFP doorway: the project's image, nothing installed at run time.

The image is fixed when the pipeline is compiled: by digest, from RETRAIN_IMAGE. Its name is only looked at by a
cluster; the local runner runs the same bodies in its own Python.
"""

import functools
import os

from kfp import dsl

IMAGE = os.environ.get("RETRAIN_IMAGE", "localhost/retrain/python:0.1.0")
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
