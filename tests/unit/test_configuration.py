"""Reading the config file: what is wrong is said with file, place and reason."""

from pathlib import Path

import pytest
from compute_node.process.configuration import ConfigurationError, read_bare_spec, read_config

SPEC = '{"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": {"roles": [], "databases": []}}'
EMPTY = '{"compute_ctl_config": {"jwks": {"keys": []}}}'


def said(path: Path) -> str:
    with pytest.raises(ConfigurationError) as info:
        read_config(str(path))
    assert str(path) in str(info.value)
    return str(info.value)


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_config_without_a_spec_is_a_node_that_waits(tmp_path: Path) -> None:
    assert read_config(str(written(tmp_path, EMPTY))).spec is None


def test_a_bare_spec_becomes_a_config_with_no_keys(tmp_path: Path) -> None:
    config = read_bare_spec(str(written(tmp_path, SPEC)))
    assert config.spec is not None
    assert config.compute_ctl_config.jwks.keys == ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in said(tmp_path / "absent.json")


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    assert "directory" in said(tmp_path)


def test_broken_json_is_said_with_line_and_column(tmp_path: Path) -> None:
    assert "line 3, column 4" in said(written(tmp_path, '{\n "compute_ctl_config":\n   }'))


def test_an_empty_file_is_not_json(tmp_path: Path) -> None:
    assert "not valid JSON" in said(written(tmp_path, ""))


def test_a_wrong_type_is_said_with_its_path(tmp_path: Path) -> None:
    broken = EMPTY[:-1] + ', "spec": ' + SPEC.replace("-1", '"never"') + "}"
    assert "$.spec.suspend_timeout_seconds" in said(written(tmp_path, broken))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    assert "compute_ctl_config" in said(written(tmp_path, "{}"))


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    assert "JSON" in said(
        written(tmp_path, b'{"compute_ctl_config": {"jwks": {"keys": []}, "tls": {"key_path": "\xff"}}}')
    )


def test_deep_nesting_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    assert "config.json" in said(written(tmp_path, "[" * 5000))
    deep = '{"compute_ctl_config": {"jwks": {"keys": [' + '{"a":' * 5000 + "1" + "}" * 5000 + "]}}}"
    assert "nested too deeply" in said(written(tmp_path, deep))
