# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every query is valid: against the part of Railway's schema that the tests' server has, and against the schema itself
where a dump of it is beside the checkout, as ``../shared/reference/railway-schema.json.gz``."""

from __future__ import annotations

import gzip
import json
import pathlib

import graphql
import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._railway import _SECRET_ANSWERS, QUERIES
from ansible_collections.surefoot.dbops.plugins.module_utils._railway_services import IN_PROGRESS
from ansible_collections.surefoot.dbops.tests.support.railway_server import SCHEMA

DUMP = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference" / "railway-schema.json.gz"

each_query = pytest.mark.parametrize("name", sorted(QUERIES))


@pytest.fixture(scope="module")
def real_schema() -> graphql.GraphQLSchema:
    if not DUMP.exists():
        pytest.skip("no dump of Railway's schema beside the checkout")
    content = json.loads(gzip.decompress(DUMP.read_bytes()))
    # graphql-core finds fault with a deprecation in it, of a type that no query of ours touches.
    return graphql.build_client_schema(content.get("data", content), assume_valid=True)


@each_query
def test_each_query_is_valid_against_the_part_of_the_schema_that_the_tests_have(name: str) -> None:
    assert graphql.validate(SCHEMA, graphql.parse(QUERIES[name])) == []


@each_query
def test_each_query_is_valid_against_railways_schema(name: str, real_schema: graphql.GraphQLSchema) -> None:
    assert graphql.validate(real_schema, graphql.parse(QUERIES[name])) == []


def test_a_query_for_what_there_is_not_is_found_out(real_schema: graphql.GraphQLSchema) -> None:
    """The example of Railway's own documentation, of which the schema knows nothing."""
    wrong = "query { deployments(input: {status: {successfulOnly: true}}, first: 1) { edges { node { id } } } }"
    assert graphql.validate(real_schema, graphql.parse(wrong)) != []


@each_query
def test_each_query_asks_for_nothing_deprecated(name: str, real_schema: graphql.GraphQLSchema) -> None:
    document = graphql.parse(QUERIES[name])
    assert graphql.validate(real_schema, document, [graphql.NoDeprecatedCustomRule]) == []


@each_query
def test_each_query_reads_and_has_its_own_name(name: str) -> None:
    (operation,) = graphql.parse(QUERIES[name]).definitions
    assert isinstance(operation, graphql.OperationDefinitionNode)
    assert operation.operation is graphql.OperationType.QUERY
    assert operation.name is not None and operation.name.value == name


def test_every_query_whose_answer_holds_values_is_known_as_that() -> None:
    assert {name for name, text in QUERIES.items() if "ariables(" in text or "variablesFor" in text} >= set(
        _SECRET_ANSWERS
    )
    holding = {
        name
        for name, text in QUERIES.items()
        for field in graphql.parse(text).definitions[0].selection_set.selections
        if field.name.value.startswith("variables")
    }
    assert holding == set(_SECRET_ANSWERS)


def test_the_part_is_a_part_of_railways_schema(real_schema: graphql.GraphQLSchema) -> None:
    """Types, fields, arguments and values are those of the real one; else the server would enforce something else."""
    for name, kind in SCHEMA.type_map.items():
        if name.startswith("__"):
            continue
        real = real_schema.type_map[name]
        assert type(real) is type(kind), name
        if isinstance(kind, graphql.GraphQLObjectType):
            for field, own in kind.fields.items():
                theirs = real.fields[field]
                assert str(theirs.type) == str(own.type), f"{name}.{field}"
                for argument, value in own.args.items():
                    assert str(theirs.args[argument].type) == str(value.type), f"{name}.{field}({argument})"
        elif isinstance(kind, graphql.GraphQLInputObjectType):
            assert {key: str(value.type) for key, value in kind.fields.items()} == {
                key: str(value.type) for key, value in real.fields.items()
            }, name
        elif isinstance(kind, graphql.GraphQLEnumType):
            assert set(kind.values) == set(real.values), name


def test_the_states_in_progress_are_states_of_railway(real_schema: graphql.GraphQLSchema) -> None:
    assert set(IN_PROGRESS) <= set(real_schema.type_map["DeploymentStatus"].values)
