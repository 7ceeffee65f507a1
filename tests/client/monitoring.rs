//! monitoring/: each query for postgres_exporter runs, on a primary and on a standby, as a role without other
//! rights, and returns the documented columns; the alerts and the dashboard use existing metrics.

use crate::common::{Cluster, Session, Standby};
use std::collections::{BTreeMap, BTreeSet};

fn read(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A query, and its columns with their usage.
#[derive(Default)]
struct Query {
    sql: String,
    columns: Vec<(String, String)>,
}

/// The queries of queries.yml by name; the parser knows only that file's layout.
fn queries() -> BTreeMap<String, Query> {
    let mut queries: BTreeMap<String, Query> = BTreeMap::new();
    let mut name = String::new();
    let text = read("queries.yml");
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        if let Some(found) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            name = found.to_owned();
        } else if let Some(metric) = line.strip_prefix("    - ") {
            let (column, about) = metric.split_once(": {usage: ").expect("a metric");
            let usage = about.split(',').next().expect("a usage").to_owned();
            queries.entry(name.clone()).or_default().columns.push((column.to_owned(), usage));
        } else if let Some(sql) = line.strip_prefix("    ") {
            queries.entry(name.clone()).or_default().sql += &format!("{sql}\n");
        } else {
            assert!(["  query: |", "  metrics:"].contains(&line), "{line}");
        }
    }
    assert_eq!(queries.len(), 3);
    queries
}

/// Runs each query. It must have these columns in this order, with numbers except for labels.
fn answers(monitor: &mut Session) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut answers = BTreeMap::new();
    for (name, query) in queries() {
        let sql = query.sql.trim_end();
        let keys = monitor.value(&format!(
            "select string_agg(key, ',' order by place) from (select to_json(q) as row from ({sql}) q limit 1) r,
             json_object_keys(row) with ordinality k (key, place)"
        ));
        let columns: Vec<&str> = query.columns.iter().map(|(column, _)| column.as_str()).collect();
        assert_eq!(keys, columns.join(","), "{name}");
        let rows = monitor.rows(sql);
        for (value, (column, usage)) in rows.iter().flat_map(|row| row.iter().zip(&query.columns)) {
            assert!(["LABEL", "GAUGE", "COUNTER"].contains(&usage.as_str()), "{name}: {usage}");
            let is_number = value.is_empty() || value.parse::<f64>().is_ok();
            assert!(usage == "LABEL" || is_number, "{name}: {column} is {value}");
        }
        answers.insert(name, rows);
    }
    answers
}

#[test]
fn queries_answer_on_a_primary_and_on_a_standby() {
    // A single beat, so that the standby receives no other.
    let cluster = Cluster::with(&["presence.node_name=a", "presence.node_beat=60s"]);
    cluster.sql("app", "create role monitor login in role pg_monitor");
    cluster.user("alice").run("select presence.upsert('lobby'); select presence.heartbeat('lobby')");
    cluster.service().flush();

    let value = |answers: &BTreeMap<String, Vec<Vec<String>>>, column: &str| {
        let at = queries()["presence_health"].columns.iter().position(|(name, _)| name == column);
        answers["presence_health"][0][at.expect(column)].clone()
    };
    let primary = answers(&mut cluster.user("monitor"));
    let expected = [
        ("worker_up", "1"),
        ("needs_update", "0"),
        ("members", "1"),
        ("slots_used", "1"),
        ("events_published", "1"),
        ("heartbeats", "1"),
        ("failing_seconds", "0"),
    ];
    for (column, expected) in expected {
        assert_eq!(value(&primary, column), expected, "{column}");
    }
    assert_eq!(primary["presence_size"].len(), 2);
    assert!(primary["presence_size"].iter().all(|row| row[1].parse::<i64>().is_ok_and(|bytes| bytes > 0)));

    let standby = Standby::of(&cluster);
    let there = answers(&mut standby.user("monitor"));
    assert_eq!((value(&there, "worker_up").as_str(), value(&there, "members").as_str()), ("1", ""));
    // `health` has no number if nothing was received, which an alert would not notice.
    assert!(value(&there, "beat_age_seconds").parse::<f64>().is_ok_and(|age| age > 0.0));
}

#[test]
fn alerts_and_dashboard_use_metrics_that_there_are() {
    let known: BTreeSet<String> = queries()
        .into_iter()
        .flat_map(|(name, query)| {
            query.columns.into_iter().map(move |(column, _)| format!("{name}_{column}"))
        })
        .collect();
    for file in ["alerts.yml", "dashboard.json"] {
        let text = read(file);
        let used: BTreeSet<&str> = text
            .split(|c: char| !c.is_ascii_lowercase() && c != '_')
            .filter(|word| word.starts_with("presence_") && *word != "presence_ext")
            .collect();
        assert!(used.len() > 10, "{file}: {used:?}");
        for metric in used {
            assert!(known.contains(metric), "{file}: no query has {metric}");
        }
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
}
