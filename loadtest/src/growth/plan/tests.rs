use super::super::steady::Steady;
use super::super::worker::Cost;
use super::*;

const MEASURED: Measured = Measured {
    backlog_shards: 64.0,
    backlog_cpu_micros: 6.0,
    steady_cpu_micros: 5.0,
    lease_writes_per_shard_minute: 30.0,
    lease_scans_per_worker_minute: 30.0,
    wire_bytes_per_event: 60.0,
    process_mib: 35.0,
    bytes_per_key: Some(40.0),
};

#[test]
fn a_million_events_a_second_need_what_their_limits_say() {
    let needs = WAYS[1].needs(&MEASURED);
    assert_eq!((needs.shards, needs.cores), (1250.0, 6.0));
    // By the network: 1.53 GB/s; six cores at 30 % would be ten.
    assert_eq!(needs.tasks, 16.0);
    assert_eq!(needs.lease_writes_per_second, 625.0);
    // 62 units a scan, which each worker makes every two seconds.
    assert_eq!(needs.lease_reads_per_second, 16.0 * 0.5 * 62.0);
    let steady = Measured { steady_cpu_micros: 12.0, ..MEASURED };
    assert_eq!(WAYS[1].needs(&steady).tasks, 20.0, "the dearer of both");
}

#[test]
fn settings_are_those_of_fifteen_when_one_of_sixteen_has_failed() {
    let needs = WAYS[1].needs(&MEASURED);
    assert_eq!(needs.shards_of_a_task, 84.0);
    // 800 events/s of a shard: a linger of 2 s lets each request have 1,000.
    assert_eq!((needs.events_per_request, needs.requests_per_second), (1000.0, 1000.0));
    // 66.7 requests/s of 200 ms are 13.3 in flight, which is half of it.
    assert_eq!(needs.max_in_flight, 27.0);
    // 84 shards x (2,000 x 3,256 bytes + 4 MiB), in steps of 64 MiB.
    assert_eq!(needs.buffer_mib, 896.0);
    assert_eq!(needs.dedup_keys, 8e6);
    assert_eq!((needs.memory_mib.round(), needs.task_memory_gb), (1236.0, 4.0));
}

#[test]
fn sums_need_hardly_more_than_the_defaults() {
    let needs = WAYS[2].needs(&MEASURED);
    assert_eq!((needs.shards, needs.tasks, needs.max_in_flight, needs.buffer_mib), (2.0, 2.0, 8.0, 64.0));
    assert_eq!(needs.requests_per_second, 2.0, "one of each shard, as the linger is one second");
}

#[test]
fn event_bridge_is_all_but_the_whole_bill() {
    let costs = WAYS.each_ref().map(|way| Costs::of(way, &way.needs(&MEASURED)).unwrap());
    // 730 hours, a dollar for each of 2,628,000 million events.
    assert_eq!(costs[0].items[0].1, 2_628_000.0);
    assert!(costs[0].event_bridge_share() > 20.0);
    assert_eq!(costs[1].items[0].1, 0.0);
    // 1,250 shards at 2 cents an hour.
    assert_eq!(costs[1].items[3].1, 18_250.0);
    // 3.75 million GB: a petabyte at 1 cent, the rest at 0.6.
    assert_eq!((costs[1].items[4].1 / 1000.0).round(), 27.0);
    assert_eq!((costs[1].through_nat / 1000.0).round(), 169.0);
}

#[test]
fn the_backlog_nearest_to_the_shards_of_a_task_is_taken_in_any_order() {
    let point = |shards: usize| Point {
        shards,
        record_bytes: 600.0,
        drained: Cost { cpu_micros_per_event: shards as f64 / 100.0, ..Cost::default() },
        unlimited: Steady { cpu_micros_per_event: 10.0 * shards as f64, ..Steady::default() },
        limited: Steady::default(),
    };
    for shards in [[1, 4, 16, 64, 256], [64, 256, 1, 16, 4]] {
        let measured = Measured::of(&shards.map(point), None, &WAYS[1]).unwrap();
        // 10 µs are 17 tasks, of 74 shards each.
        assert_eq!((measured.backlog_shards, measured.steady_cpu_micros), (64.0, 10.0));
        assert_eq!(Measured::of(&shards.map(point), None, &WAYS[2]).unwrap().backlog_shards, 1.0);
    }
    assert!(Measured::of(&[], None, &WAYS[1]).is_none());
}

#[test]
fn there_is_a_price_for_every_row() {
    rows(&[MEASURED; 3]).unwrap();
}
