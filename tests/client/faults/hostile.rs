//! Absurd calls, reproducible from a seed.

use crate::common::{Dice, Session};
use std::collections::BTreeMap;

/// A function or a relation, with the names and types of its arguments or columns.
pub struct Target {
    pub name: String,
    parts: Vec<Part>,
}

struct Part {
    name: String,
    kind: String,
    optional: bool,
}

/// Everything that can be called, read from the catalog, so that new functions are included automatically.
pub struct Surface {
    pub functions: Vec<Target>,
    pub relations: Vec<Target>,
}

impl Surface {
    pub fn of(service: &mut Session) -> Surface {
        Surface {
            functions: targets(
                service,
                "select p.oid::regproc, a.name, a.type::regtype, a.n > p.pronargs - p.pronargdefaults
                 from pg_proc p
                 left join lateral unnest(p.proargnames, p.proargtypes::oid[]) with ordinality a (name, type, n)
                     on a.type is not null
                 where p.pronamespace = 'presence'::regnamespace and p.prokind = 'f'
                   and p.prorettype <> 'trigger'::regtype
                 order by p.oid, a.n",
            ),
            relations: targets(
                service,
                "select c.oid::regclass, a.attname, a.atttypid::regtype, true
                 from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
                 where c.relnamespace = 'presence'::regnamespace and (c.relkind = 'r' or c.relname = 'online')
                 order by c.oid, a.attnum",
            ),
        }
    }

    pub fn relation(&self, name: &str) -> &Target {
        self.relations.iter().find(|relation| relation.name == name).expect("a relation")
    }
}

fn targets(service: &mut Session, query: &str) -> Vec<Target> {
    let mut found: Vec<Target> = Vec::new();
    for row in service.rows(query) {
        if found.last().is_none_or(|last| last.name != row[0]) {
            found.push(Target { name: row[0].clone(), parts: Vec::new() });
        }
        if let (Some(last), false) = (found.last_mut(), row[2].is_empty()) {
            last.parts.push(Part { name: row[1].clone(), kind: row[2].clone(), optional: row[3] == "t" });
        }
    }
    found
}

impl Target {
    /// A call of this function, with some optional arguments omitted.
    pub fn call(&self, dice: &mut Dice) -> String {
        let named = self.parts.iter().all(|part| !part.name.is_empty());
        let mut arguments = Vec::new();
        for Part { name, kind, optional } in &self.parts {
            if !named {
                arguments.push(value(dice, "", kind));
            } else if !optional || !dice.percent(35) {
                arguments.push(format!("{name} => {}", value(dice, name, kind)));
            }
        }
        // Convert the result to text, as for a client.
        format!("select count(t::text) from {}({}) t", self.name, arguments.join(", "))
    }

    /// An INSERT, UPDATE, DELETE, MERGE or SELECT on this relation.
    pub fn change(&self, dice: &mut Dice) -> String {
        let set: Vec<&Part> = self.parts.iter().filter(|_| dice.percent(30)).collect();
        let names: Vec<&str> = set.iter().map(|part| part.name.as_str()).collect();
        let values: Vec<String> = set.iter().map(|part| value(dice, &part.name, &part.kind)).collect();
        let pairs: Vec<String> =
            names.iter().zip(&values).map(|(name, value)| format!("{name} = {value}")).collect();
        let Part { name, kind, .. } = &self.parts[dice.below(self.parts.len())];
        let condition = format!("{name} = {}", value(dice, name, kind));
        let table = &self.name;
        match dice.below(12) {
            _ if set.is_empty() => format!("insert into {table} default values"),
            0..6 => {
                let conflict = ["", "on conflict do nothing"][dice.below(2)];
                format!(
                    "insert into {table} ({}) values ({}) {conflict}",
                    names.join(", "),
                    values.join(", ")
                )
            }
            6..9 => format!("update {table} set {} where {condition}", pairs.join(", ")),
            9 => format!("delete from {table} where {condition}"),
            10 => format!(
                "merge into {table} t using (values (1)) v on t.{condition}
                 when matched then update set {} when not matched then insert ({}) values ({})",
                pairs.join(", "),
                names.join(", "),
                values.join(", ")
            ),
            _ => format!("select count(t::text) from {table} t where {condition}"),
        }
    }
}

/// A value of this type as SQL; about half of them are sane, so that some calls succeed.
pub fn value(dice: &mut Dice, name: &str, kind: &str) -> String {
    if dice.percent(4) {
        return "null".into();
    }
    let sane = dice.percent(55);
    match kind {
        "text" if sane => match name {
            "room" | "prefix" => dice.pick(&["'lobby'", "'hall'", "'side'", "'room 4'"]).into(),
            "reason" => dice.pick(&["'left'", "'removed'"]).into(),
            "direction" => dice.pick(&["'forwards'", "'backwards'"]).into(),
            "action" => dice.pick(&["'read'", "'join'", "'manage'"]).into(),
            _ => dice.pick(&["'alice'", "''", "'bob'", "'tab 1'"]).into(),
        },
        "text" => text(dice),
        "jsonb" if sane && name == "members" => {
            format!("'[{{\"room\": \"hall\", \"user_id\": \"u{}\"}}]'", dice.below(99))
        }
        "jsonb" if sane => format!("'{{\"x\": {}}}'", dice.below(9)),
        "jsonb" => jsonb(dice, name),
        "text[]" | "character varying[]" if sane => match name {
            "rooms" => "'{lobby,hall}'".into(),
            "after" => dice.pick(&["'{alice,tab}'", "'{lobby,alice,tab}'"]).into(),
            _ => dice.pick(&["'{room}'", "'{users,team:red}'", "'{}'", "'{any}'"]).into(),
        },
        "text[]" => array(dice),
        "interval" if sane => dice.pick(&["'1 s'", "'90 s'", "'1 hour'"]).into(),
        "interval" => dice.pick(INTERVALS).into(),
        "integer" if sane => dice.pick(&["1", "100", "3"]).into(),
        "integer" => dice.pick(&["0", "-1", "2147483647", "-2147483648", "1001", "'1e3'"]).into(),
        "bigint" if sane => dice.pick(&["0", "presence.seq()", "1000000"]).into(),
        "bigint" => {
            dice.pick(&["-1", "9223372036854775807", "-9223372036854775808", "9007199254740993"]).into()
        }
        "boolean" => dice.pick(&["true", "false"]).into(),
        "timestamp with time zone" if sane => "now()".into(),
        "timestamp with time zone" => dice.pick(TIMES).into(),
        "regrole" => {
            dice.pick(&["'alice'", "'postgres'", "0::regrole", "4294967295::oid::regrole", "'nobody'"]).into()
        }
        "regclass" => {
            dice.pick(&["'presence.member'", "0::regclass", "'pg_class'", "4294967295::oid::regclass"]).into()
        }
        "uuid" => dice.pick(&["gen_random_uuid()", "'00000000-0000-0000-0000-000000000000'"]).into(),
        "bytea" => dice.pick(&["''::bytea", "'\\x00ff'"]).into(),
        "oid" => dice.pick(&["0", "4294967295"]).into(),
        "anyarray" | "presence.event[]" => "null".into(),
        _ => format!("null::{kind}"),
    }
}

const INTERVALS: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'-1 s'",
    "'0'",
    "'1 microsecond'",
    "'-1 microsecond'",
    "'1 month'",
    "'-1 month 31 days'",
    "'1 mon -30 days 2 s'",
    "'178000000 years'",
    "'-178000000 years'",
    "'2147483647 days'",
    "'2562047788 hours'",
    "make_interval(months => 2147483647, days => 2147483647, secs => 9000000000000)",
    "make_interval(months => -2147483648, days => -2147483648, secs => -9000000000000)",
];

const TIMES: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'epoch'",
    "'4713-01-01 BC'",
    "'294276-12-31 23:59:59.999999'",
    "'2000-01-01'",
    "now() + '1 microsecond'",
    "'yesterday'",
];

/// All are legal SQL in any database encoding; UNICODE and BYTES may raise encoding errors at run time.
pub fn text(dice: &mut Dice) -> String {
    const TEXTS: &[&str] = &[
        "''",
        "' '",
        "repeat('x', 255)",
        "repeat('x', 256)",
        "repeat('x', 100000)",
        "repeat('''', 255)",
        "repeat('\\', 255)",
        "repeat('\"', 255)",
        "repeat(E'\\x7f', 3)",
        "E'\\x01'",
        "E'a\\tb'",
        "E'a\\nb\\r'",
        "E'\\x1b[31m'",
        "'\\u0000'",
        "'\\x00'",
        "'%'",
        "'%s%n%d'",
        "'_'",
        "'lob%'",
        "'\\'",
        "''''",
        "'\"'",
        "'$1'",
        "'{}'",
        "'[]'",
        "'null'",
        "'NULL'",
        "'__proto__'",
        "'constructor'",
        "'*'",
        "'room:'",
        "'user:'",
        "'user:alice'",
        "'team:'",
        "'any'",
        "'a/b/../c'",
        "'; drop table presence.member; --'",
        "'alice,bob'",
        "'{\"sub\": \"alice\"}'",
        "'presence_0'",
        "'2'",
        "'-1'",
        "'1e999'",
        "'NaN'",
        "(select string_agg(chr(n), '') from generate_series(32, 126) n)",
    ];
    const UNICODE: &[&str] = &[
        "repeat(chr(128512), 255)",
        "repeat(chr(128512), 256)",
        "repeat(chr(65533), 255)",
        "chr(233)",
        "chr(128)",
        "chr(133)",
        "chr(160)",
        "chr(173)",
        "chr(8206) || 'abc'",
        "chr(8238) || 'abc'",
        "chr(8203)",
        "chr(8232)",
        "chr(65279)",
        "chr(65535)",
        "chr(57344)",
        "chr(1114111)",
        "'e' || chr(769)",
        "chr(304)",
        "chr(7838)",
    ];
    // The database's encoding decides what each of these is: text, a control character, or an error.
    const BYTES: &[&str] = &[
        "E'\\xe9'",
        "E'andr\\xe9'",
        "E'\\x85'",
        "E'\\xff\\xfe'",
        "E'\\xc3'",
        "E'\\xc3\\xa9'",
        "E'\\xed\\xa0\\x80'",
        "E'\\xf0\\x9f\\x98\\x80'",
        "E'\\xa4\\xa2'",
        "E'\\x8e\\xb1'",
        "repeat(E'\\xe9', 255)",
        "repeat(E'\\xff', 256)",
        "'{\"sub\": \"' || E'\\xe9' || '\"}'",
        "'user:' || E'\\xe9'",
    ];
    match dice.below(100) {
        0..20 => dice.pick(UNICODE).into(),
        20..35 => dice.pick(BYTES).into(),
        _ => dice.pick(TEXTS).into(),
    }
}

fn array(dice: &mut Dice) -> String {
    const ARRAYS: &[&str] = &[
        "array[null]::text[]",
        "array[null, 'a', null]::text[]",
        "array[['a', 'b'], ['c', 'd']]",
        "array[[null, null], [null, null]]::text[]",
        "'[0:1]={a,b}'",
        "'[-5:-4]={lobby,alice}'",
        "'[2:3][4:5]={{a,b},{c,d}}'",
        "'[2147483646:2147483647]={a,b}'",
        "'{}'",
        "array_fill('x'::text, array[10000])",
        "(select array_agg('r' || n) from generate_series(1, 10000) n)",
        "array_fill(null::text, array[10000])",
        "array_fill('users'::text, array[65])",
        "array['']",
        "array['room:', 'user:', 'team:']",
        "array['nonsense']",
        "array['a', 'b', 'c', 'd']",
        "array[repeat('x', 1000000)]",
        "'{{{{{{a}}}}}}'",
    ];
    if dice.percent(40) {
        format!("array[{}, {}]::text[]", text(dice), text(dice))
    } else {
        dice.pick(ARRAYS).into()
    }
}

pub fn jsonb(dice: &mut Dice, name: &str) -> String {
    const VALUES: &[&str] = &[
        "'null'",
        "'true'",
        "'0'",
        "'-0'",
        "'\"\"'",
        "'[]'",
        "'{}'",
        "'[null]'",
        "'[[]]'",
        "'[1, \"a\", {}]'",
        "'{\"\": null}'",
        "'{\"a\": null, \"a\": 1, \"a\": {\"b\": null}}'",
        "'{\"__proto__\": {\"x\": 1}, \"constructor\": null}'",
        "'{\"presence_ref\": 1}'",
        "'\"\\u0000\"'",
        "'{\"\\u0000\": 1}'",
        "'\"\\ud800\"'",
        "'\"\\udc00\\ud800\"'",
        "'\"\\ud83d\\ude00\"'",
        "'\"\\u007f\\u0001\\u2028\"'",
        "'1e400'",
        "'-1e-400'",
        "'1e131071'",
        "'1e131072'",
        "'NaN'",
        "'123456789012345678901234567890.123456789012345678901234567890'",
        "'{'",
        "''",
        "to_jsonb(repeat('x', 65000))",
        "to_jsonb(repeat('x', 70000))",
        "to_jsonb(repeat('x', 3000000))",
        "to_jsonb(repeat('\\', 5000))",
        "to_jsonb(repeat(E'\\x7f', 2000))",
        "(repeat('[', 500) || repeat(']', 500))::jsonb",
        "(repeat('[', 6000) || repeat(']', 6000))::jsonb",
        "(repeat('[', 1000000) || repeat(']', 1000000))::jsonb",
        "(repeat('{\"a\":', 1000) || '1' || repeat('}', 1000))::jsonb",
        "(repeat('{\"a\":', 6000) || 'null' || repeat('}', 6000))::jsonb",
        "to_jsonb(E'\\xff'::text)",
        "to_jsonb(E'\\xe9'::text)",
        "jsonb_build_object(E'\\xff', E'\\xe9')",
        "(select jsonb_object_agg('k' || n, n) from generate_series(1, 3000) n)",
        "(select jsonb_agg(n) from generate_series(1, 10000) n)",
        "jsonb_build_object(repeat('k', 60000), null)",
    ];
    if name != "members" || dice.percent(20) {
        return dice.pick(VALUES).into();
    }
    // A list of objects whose keys are argument names.
    let elements: Vec<String> = (0..dice.below(4))
        .map(|_| {
            let fields: BTreeMap<&str, String> = (0..dice.below(6))
                .map(|_| {
                    let field = dice.pick(FIELDS);
                    let value = match dice.below(4) {
                        0 => format!("to_jsonb(({})::text)", text(dice)),
                        1 => "'\"lobby\"'::jsonb".into(),
                        2 => "'\"alice\"'::jsonb".into(),
                        _ => format!("({})::jsonb", dice.pick(VALUES)),
                    };
                    (field, value)
                })
                .collect();
            let fields: Vec<String> =
                fields.iter().map(|(field, value)| format!("'{field}', {value}")).collect();
            format!("jsonb_build_object({})", fields.join(", "))
        })
        .collect();
    format!("jsonb_build_array({})", elements.join(", "))
}

const FIELDS: &[&str] = &[
    "room",
    "room",
    "room",
    "member_id",
    "connection_id",
    "user_id",
    "user_id",
    "state",
    "patch",
    "status",
    "metadata",
    "ttl",
    "audience",
    "session",
    "reason",
    "nonsense",
    "",
    "__proto__",
];
