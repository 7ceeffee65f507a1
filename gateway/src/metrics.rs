//! Prometheus metrics, at /metrics.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::listener::Hearing;
use crate::{App, memory};

#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

pub fn install() -> Result<Metrics, String> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .map_err(|e| e.to_string())?
        .install_recorder()
        .map_err(|e| e.to_string())?;
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    gauge!("presence_gateway_connections", "Sockets and event streams now");
    gauge!("presence_gateway_channels", "Rooms that these look at now, each counted");
    gauge!("presence_gateway_members", "Members of this gateway's sockets now");
    gauge!("presence_gateway_leaving", "Ends of sockets whose members may still come back");
    gauge!("presence_gateway_rooms", "Rooms that are held now");
    gauge!("presence_gateway_rows", "Members of these rooms now");
    gauge!("presence_gateway_listed_rooms", "Rooms that are listed as each user because of --max-named");
    gauge!("presence_gateway_listening", "Whether the database is listened to: 1 or 0");
    gauge!("presence_gateway_doorbell", "Whether rooms are listed as each user: 1 or 0");
    gauge!(
        "presence_gateway_jwks_stale",
        "Whether older keys hold because the file of --jwks is broken: 1 or 0"
    );
    gauge!("presence_gateway_tasks", "What runs or waits: a few, and those of sockets and of their calls");
    gauge!("presence_gateway_allocated_bytes", "Memory that is in use; the process may hold more");
    counter!("presence_gateway_frames_received_total", "Frames from clients");
    counter!("presence_gateway_frames_sent_total", "Frames to clients");
    counter!("presence_gateway_joins_total", "Joins that were asked for");
    counter!("presence_gateway_diffs_total", "Differences of presence that were sent");
    counter!("presence_gateway_reconnects_total", "How often the listening connection ended");
    histogram!("presence_gateway_join_seconds", "From a join to its answer");
    histogram!("presence_gateway_database_seconds", "A transaction as a user");
    Ok(Metrics(recorder))
}

impl Metrics {
    /// Histogram samples are stored one by one until they are aggregated, which must not wait for somebody to
    /// read the metrics.
    pub async fn keep_counting(self) {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.0.run_upkeep();
        }
    }

    pub fn render(&self, app: &App) -> String {
        let held = app.rooms.count();
        let hearing = *app.listener.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut gauges = vec![
            ("presence_gateway_connections", app.seats.taken()),
            ("presence_gateway_channels", held.viewers),
            ("presence_gateway_members", app.members.count()),
            ("presence_gateway_leaving", app.members.count_leaving()),
            ("presence_gateway_rooms", held.rooms),
            ("presence_gateway_rows", held.rows),
            ("presence_gateway_listed_rooms", held.listed),
            ("presence_gateway_listening", usize::from(hearing == Hearing::All)),
            ("presence_gateway_doorbell", usize::from(app.rooms.is_doorbell())),
            ("presence_gateway_jwks_stale", usize::from(app.keys.is_stale())),
            ("presence_gateway_tasks", tokio::runtime::Handle::current().metrics().num_alive_tasks()),
        ];
        gauges.extend(memory::heap().map(|heap| ("presence_gateway_allocated_bytes", heap.allocated)));
        for (name, value) in gauges {
            metrics::gauge!(name).set(value as f64);
        }
        self.0.run_upkeep();
        self.0.render()
    }
}
