"""Errors whose text depends on the installation."""

import pytest

from resnetkit.errors import format_install_command


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("data", "pip install 'pyarrow>=22'"),
        ("openvino", "pip install 'openvino>=2026.2' 'nncf>=3.2'"),
        ("dev", "pip install '.[dev]'"),  # names other extras, which need the checkout
        ("no-such-extra", "pip install '.[no-such-extra]'"),
    ],
)
def test_install_command_names_the_packages_of_the_extra(extra, command):
    assert format_install_command(extra) == command
