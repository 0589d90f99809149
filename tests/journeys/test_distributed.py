"""Models on several devices: tied variables are loaded onto these, and training resumes."""

import subprocess
import sys
from pathlib import Path

import keras
import pytest


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras distributes no torch models")
def test_training_on_two_devices_resumes(tmp_path):
    script = Path(__file__).with_name("distributed.py")
    subprocess.run([sys.executable, script, tmp_path], check=True)
