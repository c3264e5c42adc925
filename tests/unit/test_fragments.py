# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every documentation fragment says what its argument spec does, and every module has the action plugin of its name."""

from __future__ import annotations

import importlib
import pathlib

import pytest
import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils import _argspec

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "ansible_collections.surefoot.dbops.plugins"


@pytest.mark.parametrize("name", ["aws", "connection", "railway", "registry", "run", "variables"])
def test_fragment_and_argument_spec_agree(name):
    fragment = importlib.import_module(f"{PACKAGE}.doc_fragments._{name}").ModuleDocFragment
    documented = yaml.safe_load(fragment.DOCUMENTATION)["options"]
    spec = getattr(_argspec, f"{name}_argument_spec")().argument_spec
    assert set(documented) == set(spec)
    for option, entry in spec.items():
        for key in ("type", "choices", "default", "aliases", "elements"):
            assert documented[option].get(key) == entry.get(key), f"{option}: {key}"


MODULES = sorted(
    path.stem for kind in ("postgresql", "rds") for path in (ROOT / "plugins" / "modules").glob(f"{kind}_*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_action_plugin_runs_the_module_of_its_name(name):
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")
    action = importlib.import_module(f"{PACKAGE}.action.{name}").ActionModule
    assert action.argument_spec is module.argument_spec
    assert action.perform is module.run
