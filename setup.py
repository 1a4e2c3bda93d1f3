"""What pyproject.toml cannot say: train.py stands at the top of the tree, and travels as minibert/train.py."""
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithTraining(build_py):
    """The package and train.py, which an editable install leaves where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("train.py", str(Path(self.build_lib, "minibert", "train.py")))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), "train.py"]


setup(cmdclass={"build_py": WithTraining})
