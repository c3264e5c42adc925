# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""``change_type`` and ``contract_type`` of a plan: another type for a column of a table that is in use.

A column of the new type is made beside the old one; a trigger keeps both in step, before the swap from the old to the
new, after it back, so that a rollback loses nothing that was written meanwhile. ``docs/online-changes.md`` has the
sequence. The trigger's name sorts last: what other triggers make of the value is what is converted.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import Check
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._operations import (
    SWEEP_BATCH,
    Entry,
    ForeignKey,
    Index,
    Operation,
    Retyped,
    block,
    columns_of,
    expression_of,
    literal,
    name_of,
    not_null_query,
    quoted,
    quoted_table,
    read_index,
    read_references,
    refuse,
    required,
    short,
    shown,
    text_array,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._planyaml import THROTTLE_KEYS
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import (
    ONLY,
    BackfillStep,
    Step,
    SweepStep,
    split_qualified,
)

CHANGE_KEYS = (
    "table", "column", "to", "key", "using", "back", "default", "not_null", "indexes", "references", "on_invalid",
    "dependents", "batch", *THROTTLE_KEYS,
)  # fmt: skip
CONTRACT_KEYS = ("table", "column")
INDEX_KEYS = ("name", "columns", "unique", "method", "include")
REFERENCES_KEYS = ("name", "table", "columns", "on_delete", "on_update", "deferrable", "initially")
DEPENDENT_KEYS = ("table", "columns", "references")

# Between the tags of a function's body; BODY of _operations is around the blocks.
_TAG = "$surefoot_body$"
_HEAD = f"LANGUAGE plpgsql STABLE STRICT AS {_TAG}\n#variable_conflict use_column\n"
# What a conversion raises when it does not like a value.
_INVALID = "data_exception OR raise_exception OR check_violation OR not_null_violation"
_BATCH = 2000


@dataclasses.dataclass(frozen=True)
class Change:
    """One ``change_type``, and the names of everything it makes."""

    table: str
    column: str
    to: str
    key: tuple[str, ...]
    using: str
    back: str | None
    default: str | None
    not_null: bool
    indexes: tuple[Index, ...]
    foreign: ForeignKey | None

    @property
    def target(self) -> str:
        return quoted_table(self.table)

    @property
    def where(self) -> str:
        return f"{shown(self.table)}.{self.column}"

    @property
    def new(self) -> str:
        return short("surefoot_new_", self.column)

    @property
    def old(self) -> str:
        return short("surefoot_old_", self.column)

    @property
    def check_name(self) -> str:
        return short("surefoot_not_null_", self.new)

    def function(self, prefix: str) -> str:
        """The quoted name of a function of ours in the table's schema."""
        schema, table = split_qualified(self.table)
        return f"{quoted(schema)}.{quoted(short(prefix, f'{table}_{self.column}'))}"

    @property
    def convert(self) -> str:
        return self.function("surefoot_convert_")

    @property
    def why(self) -> str:
        return self.function("surefoot_why_not_")

    @property
    def sync(self) -> str:
        return self.function("surefoot_sync_")

    @property
    def triggers(self) -> tuple[str, str]:
        return short("zz_surefoot_insert_", self.column), short("zz_surefoot_update_", self.column)

    def type_of(self, column: str) -> str:
        return f"{self.target}.{quoted(column)}%TYPE"

    # -- functions

    @property
    def _parameter(self) -> str:
        return f"{quoted(self.column)} {self.type_of(self.column)}"

    def conversions(self, convert: str, why: str, *, replace: bool = False) -> str:
        """The functions that convert one value, or say why it cannot be: NULL where it can."""
        create = f"CREATE {'OR REPLACE ' if replace else ''}FUNCTION"
        parameter, head = self._parameter, _HEAD
        return (
            f"{create} {convert}({parameter}) RETURNS {self.to} {head}"
            # A variable, unlike a function's result, keeps to the length or scale of its type.
            f"DECLARE\n  result {self.to};\n"
            f"BEGIN\n  result := {self.using};\n  RETURN result;\nEXCEPTION WHEN {_INVALID} THEN\n  RETURN NULL;\n"
            f"END\n{_TAG};\n"
            f"{create} {why}({parameter}) RETURNS text {head}"
            f"DECLARE\n  result {self.to};\n"
            f"BEGIN\n  result := {self.using};\n  RETURN NULL;\nEXCEPTION WHEN {_INVALID} THEN\n  RETURN SQLSTATE;\n"
            f"END\n{_TAG};\n"
        )

    def _sync(self, body: str) -> str:
        schema, _table = split_qualified(self.table)
        return (
            f"CREATE OR REPLACE FUNCTION {self.sync}() RETURNS trigger LANGUAGE plpgsql"
            f" SET search_path = pg_catalog, {quoted(schema)}, pg_temp AS {_TAG}\n"
            f"#variable_conflict use_column\n{body}{_TAG};\n"
        )

    def forward(self, *, strict: bool) -> str:
        """The trigger's function before the swap. ``strict`` refuses what cannot be converted, as the new type will."""
        column, new = quoted(self.column), quoted(self.new)
        lenient = "" if strict else f"EXCEPTION WHEN {_INVALID} THEN\n  NEW.{new} := NULL;\n  RETURN NEW;\n"
        return self._sync(
            f"DECLARE\n  {column} {self.type_of(self.column)} := NEW.{column};\n"
            f"BEGIN\n  NEW.{new} := NULL;\n"
            f"  IF {column} IS NOT NULL THEN\n    NEW.{new} := {self.using};\n  END IF;\n  RETURN NEW;\n{lenient}END\n"
        )

    def backward(self) -> str:
        """The trigger's function after the swap. An INSERT without a list of columns still fills the old one."""
        column, old = quoted(self.column), quoted(self.old)
        return self._sync(
            f"BEGIN\n  IF TG_OP = 'INSERT' AND NEW.{column} IS NULL AND NEW.{old} IS NOT NULL THEN\n"
            f"    DECLARE\n      {column} {self.type_of(self.old)} := NEW.{old};\n"
            f"    BEGIN\n      NEW.{column} := {self.using};\n    END;\n"
            f"  ELSIF NEW.{column} IS NULL THEN\n    NEW.{old} := NULL;\n"
            f"  ELSE\n    DECLARE\n      {column} {self.type_of(self.column)} := NEW.{column};\n"
            f"    BEGIN\n      NEW.{old} := {self.back or column};\n    END;\n"
            "  END IF;\n  RETURN NEW;\nEND\n"
        )

    def make_triggers(self, column: str, indent: str = "", *, watched: t.Sequence[str] = ()) -> str:
        """The two triggers; the one of UPDATE is not even called while the value stays the same.

        :param watched: other columns, whose changes call it too
        """
        insert, update = (quoted(name) for name in self.triggers)
        changed = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in map(quoted, (column, *watched)))
        return (
            f"{indent}CREATE TRIGGER {insert} BEFORE INSERT ON {self.target}"
            f" FOR EACH ROW EXECUTE FUNCTION {self.sync}();\n"
            f"{indent}CREATE TRIGGER {update} BEFORE UPDATE ON {self.target} FOR EACH ROW"
            f" WHEN ({changed}) EXECUTE FUNCTION {self.sync}();\n"
        )

    def drop_triggers(self, indent: str = "") -> str:
        return "".join(f"{indent}DROP TRIGGER IF EXISTS {quoted(name)} ON {self.target};\n" for name in self.triggers)

    def drop_functions(self) -> str:
        """Without their parameters: the type of one of them has changed by then."""
        return f"DROP FUNCTION IF EXISTS {self.convert}, {self.why}, {self.sync};\n"

    # -- the states of the catalog

    def precheck(self) -> str:
        """Refuses what would be lost or would stand in the way, before anything is there."""
        schema, _table = split_qualified(self.table)
        names = text_array([index.name for index in self.indexes])
        hint = "Drop it first and make it anew afterwards, in migrations of their own."
        parts = [
            refuse("relation IS NULL", f"there is no table {shown(self.table)}", "Correct table."),
            refuse(
                "NOT (SELECT c.relkind = 'r' AND NOT c.relispartition AND NOT c.relhassubclass"
                " FROM pg_catalog.pg_class c WHERE c.oid = relation)",
                f"{shown(self.table)} is not a table of its own",
                "change_type does not work on partitions, parents, views or foreign tables.",
            ),
            "  SELECT a.* INTO this FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation"
            f" AND a.attname = {literal(self.column)} AND a.attnum > 0 AND NOT a.attisdropped;\n",
            refuse("this IS NULL", f"there is no column {self.where}", "Correct column."),
            refuse(
                f"this.atttypid = {literal(self.to)}::pg_catalog.regtype AND this.atttypmod = -1",
                f"{self.where} is of that type already",
                "Take the step out of the plan.",
            ),
            refuse(
                "this.attidentity <> '' OR this.attgenerated <> ''",
                f"{self.where} is an identity or generated column",
                "change_type does not work on it.",
            ),
            refuse(
                "EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND NOT a.attisdropped"
                f" AND a.attname = ANY ({text_array([self.new, self.old])}))",
                f"{shown(self.table)} has a column {self.new} or {self.old}",
                "An earlier change of this column is not finished: apply its contract_type, or roll it back.",
            ),
        ]
        if not self.not_null:
            parts.append(
                refuse(
                    "this.attnotnull",
                    f"{self.where} is NOT NULL, and would not be so afterwards",
                    "Add not_null: true.",
                )
            )
        if self.default is None:
            parts.append(
                refuse(
                    "this.atthasdef",
                    f"{self.where} has a default, and would have none afterwards",
                    "Give default, an expression of the new type.",
                )
            )
        parts.append(
            f"  FOREACH name IN ARRAY {names} LOOP\n"
            f"    other := pg_catalog.to_regclass(pg_catalog.format('%I.%I', {literal(schema)}, name));\n"
            "    IF other IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid = other"
            " AND i.indrelid = relation AND this.attnum = ANY (i.indkey::int2[])) THEN\n"
            "      RAISE EXCEPTION USING ERRCODE = 'duplicate_table',\n"
            f"        MESSAGE = pg_catalog.format('%s exists and is no index of %s', name, {literal(self.where)}),\n"
            "        HINT = 'Choose another name for the index.';\n"
            "    END IF;\n"
            "  END LOOP;\n"
            # Its own default, its listed indexes and its NOT NULL are carried over; all else would be lost or hang on
            # the old column.
            "  SELECT pg_catalog.string_agg(pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), ', '"
            " ORDER BY d.classid, d.objid) INTO found\n"
            "  FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass\n"
            "    AND d.refobjid = relation AND d.refobjsubid = this.attnum\n"
            "    AND NOT (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid IN (SELECT f.oid"
            " FROM pg_catalog.pg_attrdef f WHERE f.adrelid = relation AND f.adnum = this.attnum))\n"
            "    AND NOT (d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid IN (SELECT k.oid"
            " FROM pg_catalog.pg_constraint k WHERE k.contype = 'n'))\n"
            "    AND NOT (d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid IN (SELECT c.oid"
            f" FROM pg_catalog.pg_class c WHERE c.relkind = 'i' AND c.relname = ANY ({names})));\n"
            "  IF found IS NOT NULL THEN\n"
            "    RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',\n"
            f"      MESSAGE = pg_catalog.format('%s is used by %s', {literal(self.where)}, found),\n"
            f"      HINT = {literal('List an index under indexes. Of all else: ' + hint)};\n"
            "  END IF;\n"
        )
        if self.foreign is not None:
            parts.append(
                refuse(
                    f"pg_catalog.to_regclass({literal(quoted_table(self.foreign.parent))}) IS NULL",
                    f"there is no table {shown(self.foreign.parent)}",
                    "Correct references.",
                )
                + refuse(
                    "EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = relation"
                    f" AND k.conname = {literal(self.foreign.name)})",
                    f"{shown(self.table)} has a constraint {self.foreign.name}",
                    "Choose another name for the foreign key.",
                )
            )
        return block(
            f"DECLARE\n  relation regclass := pg_catalog.to_regclass({literal(self.target)});\n"
            "  this pg_catalog.pg_attribute;\n  other regclass;\n  name text;\n  found text;\n"
            f"BEGIN\n{''.join(parts)}END\n"
        )

    def prepare(self) -> str:
        """Everything that is beside the old column from now on; what locks the table comes last."""
        return (
            f"{self.precheck()}{self.conversions(self.convert, self.why)}"
            f"{self.forward(strict=False)}"
            f"REVOKE ALL ON FUNCTION {self.convert}, {self.why}, {self.sync} FROM PUBLIC;\n"
            # An expression that cannot work at all fails here, and not at the first row.
            f"SELECT pg_catalog.count({self.why}({quoted(self.column)})) FROM (SELECT {quoted(self.column)}"
            f" FROM {self.target} WHERE {quoted(self.column)} IS NOT NULL LIMIT 1) AS one;\n"
            f"ALTER TABLE {self.target} ADD COLUMN {quoted(self.new)} {self.to};\n"
            # A row whose key changes can go to where the backfill has been.
            f"{self.make_triggers(self.column, watched=self.key)}"
        )

    def door(self) -> str:
        """From here on clients cannot write what the new column will not take. The lock waits for those who already
        did, so that the sweep behind it sees all of it."""
        text = self.forward(strict=True)
        text += f"LOCK TABLE {self.target} IN SHARE ROW EXCLUSIVE MODE;\n"
        if self.not_null:
            text = text.replace("IN SHARE ROW EXCLUSIVE MODE", "IN ACCESS EXCLUSIVE MODE")
            text += (
                f"ALTER TABLE {self.target} ADD CONSTRAINT {quoted(self.check_name)}"
                f" CHECK ({quoted(self.new)} IS NOT NULL) NOT VALID;\n"
            )
        if self.foreign is not None:
            text += self.foreign.sql(self.table, [self.new])
        return text

    def validate(self) -> str:
        constraints = [self.check_name] if self.not_null else []
        if self.foreign is not None:
            constraints.append(self.foreign.name)
        return "".join(f"ALTER TABLE {self.target} VALIDATE CONSTRAINT {quoted(name)};\n" for name in constraints) + (
            f"ANALYZE {self.target} ({quoted(self.new)});\n"
        )

    def swap(self) -> str:
        schema, _table = split_qualified(self.table)
        column, new, old = quoted(self.column), quoted(self.new), quoted(self.old)
        parts = [
            f"  LOCK TABLE {self.target} IN ACCESS EXCLUSIVE MODE;\n",
            "  SELECT a.* INTO this FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation"
            f" AND a.attname = {literal(self.column)};\n",
            "  remark := pg_catalog.col_description(relation, this.attnum);\n",
            "  SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) INTO given FROM pg_catalog.pg_attrdef d"
            " WHERE d.adrelid = relation AND d.adnum = this.attnum;\n",
            f"  ALTER TABLE {self.target} RENAME COLUMN {column} TO {old};\n",
            f"  ALTER TABLE {self.target} RENAME COLUMN {new} TO {column};\n",
        ]
        if self.not_null:
            parts.append(f"  ALTER TABLE {self.target} ALTER COLUMN {column} SET NOT NULL;\n")
            parts.append(f"  ALTER TABLE {self.target} DROP CONSTRAINT {quoted(self.check_name)};\n")
        if self.default is not None:
            parts.append(f"  ALTER TABLE {self.target} ALTER COLUMN {column} SET DEFAULT {self.default};\n")
        parts += [
            # The way back finds there what it has to bring back.
            "  IF given IS NOT NULL OR remark IS NOT NULL THEN\n"
            f"    EXECUTE pg_catalog.format('COMMENT ON COLUMN {_in_format(self.target)}.{_in_format(old)} IS %L',\n"
            "      'surefoot: ' || pg_catalog.jsonb_build_object('default', given, 'comment', remark)::text);\n"
            "  END IF;\n"
            f"  IF given IS NOT NULL THEN\n    ALTER TABLE {self.target} ALTER COLUMN {old} DROP DEFAULT;\n  END IF;\n"
            "  IF remark IS NOT NULL THEN\n"
            f"    EXECUTE pg_catalog.format('COMMENT ON COLUMN {_in_format(self.target)}.{_in_format(column)} IS %L',"
            " remark);\n  END IF;\n"
            "  IF this.attstattarget >= 0 THEN\n"
            f"    EXECUTE pg_catalog.format('ALTER TABLE {_in_format(self.target)} ALTER COLUMN {_in_format(column)}"
            " SET STATISTICS %s', this.attstattarget);\n  END IF;\n"
            "  IF this.attoptions IS NOT NULL THEN\n"
            f"    EXECUTE pg_catalog.format('ALTER TABLE {_in_format(self.target)} ALTER COLUMN {_in_format(column)}"
            " SET (%s)', pg_catalog.array_to_string(this.attoptions, ', '));\n  END IF;\n"
            "  FOR granted IN SELECT x.privilege_type, x.is_grantable, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE"
            " pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) END AS grantee"
            " FROM pg_catalog.aclexplode(this.attacl) AS x LOOP\n"
            f"    EXECUTE pg_catalog.format('GRANT %s ({_in_format(column)}) ON {_in_format(self.target)} TO %s%s',\n"
            "      granted.privilege_type, granted.grantee,"
            " CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);\n  END LOOP;\n"
        ]
        for index in self.indexes:
            spare, ours = short("surefoot_old_", index.name), short("surefoot_new_", index.name)
            named = f"{quoted(schema)}.{quoted(index.name)}"
            parts.append(
                f"  IF pg_catalog.to_regclass({literal(named)}) IS NOT NULL THEN\n"
                f"    ALTER INDEX {named} RENAME TO {quoted(spare)};\n  END IF;\n"
                f"  ALTER INDEX {quoted(schema)}.{quoted(ours)} RENAME TO {quoted(index.name)};\n"
            )
        parts += [self.drop_triggers("  "), self.make_triggers(self.column, "  ")]
        # The function speaks of columns as they are called afterwards; what locks comes last.
        return (
            "SET LOCAL check_function_bodies = off;\n"
            + self.backward()
            + block(
                f"DECLARE\n  relation regclass := {literal(self.target)};\n"
                "  this pg_catalog.pg_attribute;\n  remark text;\n  given text;\n  granted record;\n"
                f"BEGIN\n{''.join(parts)}END\n"
            )
        )

    def undo(self) -> str:
        """From any state back to the old column, with everything that was written meanwhile."""
        schema, _table = split_qualified(self.table)
        column, new, old = quoted(self.column), quoted(self.new), quoted(self.old)
        has = (
            "EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND NOT a.attisdropped"
            " AND a.attname = {})"
        )
        parts = [
            refuse(
                f"NOT {has.format(literal(self.new))} AND NOT {has.format(literal(self.old))}",
                f"the old column of {self.where} is gone",
                "contract_type was applied: what it dropped is in the backup only.",
            ),
            f"  LOCK TABLE {self.target} IN ACCESS EXCLUSIVE MODE;\n",
            self.drop_triggers("  "),
            f"  IF {has.format(literal(self.old))} THEN\n",
            f"    ALTER TABLE {self.target} RENAME COLUMN {column} TO {new};\n",
            f"    ALTER TABLE {self.target} RENAME COLUMN {old} TO {column};\n",
            "    SELECT pg_catalog.substr(pg_catalog.col_description(relation, a.attnum), 11)::jsonb INTO kept"
            f" FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = {literal(self.column)}"
            " AND pg_catalog.starts_with(pg_catalog.col_description(relation, a.attnum), 'surefoot: ');\n",
            "    IF kept IS NOT NULL THEN\n"
            f"      EXECUTE pg_catalog.format('COMMENT ON COLUMN {_in_format(self.target)}.{_in_format(column)} IS %L',"
            " kept ->> 'comment');\n"
            "      IF kept ->> 'default' IS NOT NULL THEN\n"
            f"        EXECUTE 'ALTER TABLE {_in_text(self.target)} ALTER COLUMN {_in_text(column)} SET DEFAULT '"
            " || (kept ->> 'default');\n      END IF;\n    END IF;\n",
        ]
        for index in self.indexes:
            spare, ours = short("surefoot_old_", index.name), short("surefoot_new_", index.name)
            parts.append(
                f"    ALTER INDEX IF EXISTS {quoted(schema)}.{quoted(index.name)} RENAME TO {quoted(ours)};\n"
                f"    ALTER INDEX IF EXISTS {quoted(schema)}.{quoted(spare)} RENAME TO {quoted(index.name)};\n"
            )
        # Its indexes, its foreign key and its check go with the column.
        parts.append(f"  END IF;\n  ALTER TABLE {self.target} DROP COLUMN {new};\n")
        return (
            block(
                f"DECLARE\n  relation regclass := {literal(self.target)};\n  kept jsonb;\nBEGIN\n{''.join(parts)}END\n"
            )
            + self.drop_functions()
        )

    def contract(self) -> str:
        has = (
            "EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid ="
            f" pg_catalog.to_regclass({literal(self.target)}) AND NOT a.attisdropped"
            f" AND a.attname = {literal(self.old)})"
        )
        text = refuse(
            f"NOT {has}", f"{shown(self.table)} has no column {self.old}", "The change_type must be applied before."
        )
        return (
            block(f"BEGIN\n{text}END\n")
            + f"LOCK TABLE {self.target} IN ACCESS EXCLUSIVE MODE;\n"
            + self.drop_triggers()
            + f"ALTER TABLE {self.target} DROP COLUMN {quoted(self.old)};\n"
            + self.drop_functions()
        )

    # -- rows that cannot be converted

    def unfit(self, *, before: bool) -> str:
        """A query for the key and the reason of each row that the new column does not take.

        :param before: nothing was made yet, so the value is converted on the way
        """
        old = f"t.{quoted(self.column)}"
        convert, why = ("pg_temp.surefoot_convert", "pg_temp.surefoot_why_not") if before else (self.convert, self.why)
        value = "c.value" if before else f"t.{quoted(self.new)}"
        source = f"{self.target} AS t"
        if before:
            source += f" CROSS JOIN LATERAL (SELECT {convert}({old}) OFFSET 0) AS c(value)"
        null = (
            f"{value} IS NULL"
            if self.not_null
            else f"{old} IS NOT NULL AND {value} IS NULL AND {why}({old}) IS NOT NULL"
        )
        conditions = [f"({null})"]
        orphan = ""
        if self.foreign is not None:
            parent = quoted(self.foreign.parent_columns[0])
            source += f" LEFT JOIN {quoted_table(self.foreign.parent)} AS p ON p.{parent} = {value}"
            conditions.append(f"({value} IS NOT NULL AND p.{parent} IS NULL)")
            orphan = f" WHEN {value} IS NOT NULL THEN 'no parent'"
        keys = ", ".join(f"t.{quoted(name)} AS surefoot_key_{number}" for number, name in enumerate(self.key))
        return (
            f"SELECT {keys}, t.ctid AS surefoot_place, CASE{orphan} WHEN {old} IS NULL THEN 'null'"
            f" ELSE coalesce('invalid value (' || {why}({old}) || ')', 'null') END AS surefoot_reason"
            f" FROM {source} WHERE ({' OR '.join(conditions)}) AND {ONLY}"
        )

    def different(self) -> str:
        """The same for each row whose two columns do not say the same."""
        keys = ", ".join(f"t.{quoted(name)} AS surefoot_key_{number}" for number, name in enumerate(self.key))
        return (
            f"SELECT {keys}, t.ctid AS surefoot_place, 'not in step' AS surefoot_reason FROM {self.target} AS t"
            # What could not be converted is gone by now: the expression itself is several times as fast.
            f" WHERE t.{quoted(self.new)} IS DISTINCT FROM CASE WHEN t.{quoted(self.column)} IS NOT NULL"
            f" THEN CAST(({self.using}) AS {self.to}) END AND {ONLY}"
        )


def _in_format(name: str) -> str:
    """A quoted name inside the literal that format() reads."""
    return _in_text(name).replace("%", "%%")


def _in_text(name: str) -> str:
    return name.replace("'", "''")


def change_type(entry: Entry, node: t.Any) -> Operation:
    """The steps of a ``change_type``."""
    yml = entry.yaml
    fields = yml.fields(node, "change_type", CHANGE_KEYS)
    required(yml, fields, node, "change_type", ("table", "column", "to", "key"))
    change = _read(entry, fields)
    entry = dataclasses.replace(entry, name=entry.name or f"change_type {change.where}")
    on_invalid = "abort"
    if "on_invalid" in fields:
        on_invalid = yml.choice(fields["on_invalid"], "on_invalid", ("abort", "quarantine"))
    moves = on_invalid == "quarantine"
    dependents = tuple(_dependents(entry, fields["dependents"])) if "dependents" in fields else ()
    if "dependents" in fields and not moves:
        remedy = "Add on_invalid: quarantine, or take dependents out."
        raise PlanError("dependents, and no row is moved", location=yml.at(fields["dependents"]), remedy=remedy)

    def sweep(part: str, mode: str, *, before: bool = False) -> SweepStep:
        prelude = ""
        if before:
            temporary = change.conversions("pg_temp.surefoot_convert", "pg_temp.surefoot_why_not", replace=True)
            prelude = change.precheck() + temporary
        return SweepStep(
            name=f"{entry.name}: {part}",
            table=change.table,
            key=change.key,
            mode=mode,
            prelude=prelude,
            rows=change.unfit(before=before),
            dependents=dependents,
            batch=SWEEP_BATCH,
            location=entry.location,
        )

    steps: list[Step] = [] if moves else [sweep("look", "count", before=True)]
    prepared = len(steps)
    steps.append(entry.sql(change.prepare(), part="prepare"))
    batch = yml.integer(fields["batch"], "batch", 1) if "batch" in fields else _BATCH
    steps.append(
        BackfillStep(
            name=f"{entry.name}: backfill",
            table=change.table,
            key=change.key,
            # An exception handler enters a subtransaction for every row, which costs more than the conversion.
            set={change.new: f"({change.using})"},
            otherwise={change.new: f"{change.convert}({quoted(change.column)})"},
            where=f"{quoted(change.new)} IS NULL AND {quoted(change.column)} IS NOT NULL",
            batch=batch,
            throttle=yml.throttle(fields),
            location=entry.location,
        )
    )
    for index in change.indexes:
        built = dataclasses.replace(
            index,
            keys=tuple(_beside(key, change) for key in index.keys),
            columns=tuple(change.new if name == change.column else name for name in index.columns),
        )
        text = built.sql(change.table, short("surefoot_new_", index.name))
        steps.append(entry.sql(text, transaction=False, part=f"index {index.name}"))
    mode = "quarantine" if moves else "count"
    swept = [len(steps)]
    steps.append(sweep("sweep", mode))
    steps.append(entry.sql(change.door(), part="close"))
    swept.append(len(steps))
    steps.append(sweep("sweep again", mode))
    steps.append(entry.sql(change.validate(), transaction=False, part="validate"))
    steps.append(dataclasses.replace(sweep("compare", "count"), rows=change.different()))
    steps.append(entry.sql(change.swap(), part="swap", brief=True))
    undo: list[Step] = [dataclasses.replace(entry.sql(change.undo(), part="undo"), undoes=(prepared,))]
    if moves:
        undo.append(dataclasses.replace(sweep("restore", "restore"), rows="", undoes=tuple(swept)))
    retyped = Retyped(change.table, change.column, change.to)
    return Operation(tuple(steps), tuple(undo), tuple(_checks(entry, change)), (retyped,))


def _beside(key: str, change: Change) -> str:
    """The key of an index, over the new column."""
    name, space, order = key.partition('" ') if not key.endswith('"') else (key, "", "")
    name = name + '"' if space else name
    return (quoted(change.new) if name == quoted(change.column) else name) + (f" {order}" if order else "")


def _checks(entry: Entry, change: Change) -> t.Iterator[Check]:
    attribute = (
        " FROM pg_catalog.pg_attribute a"
        f" WHERE a.attrelid = pg_catalog.to_regclass({literal(change.target)})"
        f" AND a.attname = {literal(change.column)} AND NOT a.attisdropped"
    )
    yield entry.check(
        f"{change.where} is of type {change.to}",
        f"SELECT a.atttypid = pg_catalog.to_regtype({literal(change.to)})::oid{attribute}",
    )
    yield entry.check(
        f"the old column of {change.where} is kept in step",
        "SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_trigger g"
        f" WHERE g.tgrelid = pg_catalog.to_regclass({literal(change.target)}) AND g.tgenabled IN ('O', 'A')"
        f" AND g.tgname = ANY ({text_array(change.triggers)}::name[])",
    )
    if change.not_null:
        yield entry.check(f"{change.where} is NOT NULL", not_null_query(change.table, change.column))
    for index in change.indexes:
        yield entry.check(f"index {index.name} is valid and as declared", index.check(change.table))
    if change.foreign is not None:
        yield entry.check(
            f"foreign key {change.foreign.name} is validated and as declared",
            change.foreign.check(change.table, [change.column]),
        )


def _read(entry: Entry, fields: t.Mapping[str, t.Any]) -> Change:
    yml = entry.yaml
    table = yml.table(fields["table"], "table")
    column = yml.column(yml.text(fields["column"], "column"), fields["column"])
    key = columns_of(yml, fields["key"], "key")
    if column in key:
        raise PlanError(f"{column} is its own key", location=yml.at(fields["key"]), remedy="Name another unique key.")
    to = expression_of(yml, fields["to"], "to")
    foreign = None
    if "references" in fields:
        given = yml.fields(fields["references"], "references", REFERENCES_KEYS)
        name = name_of(yml, given, fields["references"], "a foreign key")
        foreign = read_references(yml, fields["references"], given, name, REFERENCES_KEYS)
        if len(foreign.parent_columns) != 1:
            raise PlanError("references has more than one column", location=yml.at(given["columns"]))
    indexes = []
    if "indexes" in fields:
        for item in yml.items(fields["indexes"], "indexes"):
            index = read_index(yml, item, "an index", INDEX_KEYS)
            if column not in index.columns:
                problem = f"index {index.name} is not on {column}"
                remedy = "List the indexes of this column only; others are not touched."
                raise PlanError(problem, location=yml.at(item), remedy=remedy)
            indexes.append(index)
    return Change(
        table=table,
        column=column,
        to=to,
        key=key,
        # Assigned, as ALTER TYPE does: a cast would cut a text that is too long.
        using=expression_of(yml, fields["using"], "using") if "using" in fields else quoted(column),
        back=expression_of(yml, fields["back"], "back") if "back" in fields else None,
        default=expression_of(yml, fields["default"], "default") if "default" in fields else None,
        not_null=yml.flag(fields["not_null"], "not_null") if "not_null" in fields else False,
        indexes=tuple(indexes),
        foreign=foreign,
    )


def _dependents(entry: Entry, node: t.Any) -> t.Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    yml = entry.yaml
    for item in yml.items(node, "dependents"):
        fields = yml.fields(item, "a dependent", DEPENDENT_KEYS)
        required(yml, fields, item, "a dependent", DEPENDENT_KEYS)
        columns = columns_of(yml, fields["columns"], "columns")
        references = columns_of(yml, fields["references"], "references")
        if len(columns) != len(references):
            raise PlanError("columns and references differ in number", location=yml.at(item))
        yield yml.table(fields["table"], "table"), columns, references


def contract_type(entry: Entry, node: t.Any) -> Operation:
    """The steps of a ``contract_type``: there is no way back from it."""
    yml = entry.yaml
    fields = yml.fields(node, "contract_type", CONTRACT_KEYS)
    required(yml, fields, node, "contract_type", CONTRACT_KEYS)
    table = yml.table(fields["table"], "table")
    column = yml.column(yml.text(fields["column"], "column"), fields["column"])
    change = Change(table, column, "text", ("",), "", None, None, False, (), None)
    entry = dataclasses.replace(entry, name=entry.name or f"contract_type {change.where}")
    gone = (
        "SELECT pg_catalog.count(*) = 0 FROM pg_catalog.pg_attribute a"
        f" WHERE a.attrelid = pg_catalog.to_regclass({literal(change.target)}) AND NOT a.attisdropped"
        f" AND a.attname = {literal(change.old)}"
    )
    check = entry.check(f"the old column of {change.where} is gone", gone)
    return Operation((entry.sql(change.contract()),), None, (check,))
