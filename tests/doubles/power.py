"""A disk that forgets, when the power goes, whatever was not synced."""

import os
import shutil
import stat
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Tree: TypeAlias = "dict[str, Tree | bytes]"


class ForgetfulDisk:
    """Watches `os.fsync` below a folder; `lose_power` leaves there what was durable, and nothing else.

    The worst case: a name counts once its folder was synced, a content once its file was.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._contents: dict[int, bytes] = {}
        self._held: list[int] = []
        monkeypatch.setattr(os, "fsync", self._fsync)
        self.sync_all()

    def sync_all(self) -> None:
        """Let everything that is there be durable."""
        self._names.clear()
        self._contents.clear()
        for folder, _, files in os.walk(self._root):
            self._keep_names(folder)
            for name in files:
                path = Path(folder, name)
                self._contents[path.stat().st_ino] = path.read_bytes()

    def lose_power(self, remove: Any = shutil.rmtree) -> None:
        """Put the folder back to what was synced."""
        tree = self._tree(self._root.stat().st_ino)
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        for entry in os.scandir(self._root):
            remove(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)  # noqa: PTH108 - Path's are watched
        _write(str(self._root), tree)
        self.sync_all()

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - the text of the link is what is wanted
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._keep_names(path)
        else:
            self._contents[status.st_ino] = Path(path).read_bytes()

    def _keep_names(self, folder: str) -> None:
        names = {}
        for entry in os.scandir(folder):
            # Held open, so that its number means nothing else as long as we remember it.
            self._held.append(os.open(entry.path, os.O_PATH | os.O_NOFOLLOW))
            names[entry.name] = (entry.inode(), entry.is_dir(follow_symlinks=False))
        self._names[Path(folder).stat().st_ino] = names

    def _tree(self, folder: int) -> Tree:
        return {
            name: self._tree(inode) if is_folder else self._contents.get(inode, b"")
            for name, (inode, is_folder) in self._names.get(folder, {}).items()
        }


def _write(folder: str, tree: Tree) -> None:
    for name, content in tree.items():
        path = f"{folder}/{name}"
        if isinstance(content, bytes):
            with open(path, "wb") as file:  # noqa: PTH123 - as above
                file.write(content)
        else:
            os.mkdir(path)  # noqa: PTH102 - as above
            _write(path, content)
