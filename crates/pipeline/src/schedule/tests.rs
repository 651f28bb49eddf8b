use jiff::tz::TimeZone;

use super::*;

/// Seconds since the Unix epoch of an RFC 3339 time.
fn at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_second()
}

fn next(cron: &str, after: &str, zone: &TimeZone) -> Option<String> {
    let next = Cron::parse(cron).unwrap().next(at(after), zone)?;
    Some(jiff::Timestamp::from_second(next).unwrap().to_string())
}

#[test]
fn cron_expressions_have_seconds_first() {
    for (cron, after, expected) in [
        ("0 0 9 ? * 2-6", "2026-01-02T09:00:00Z", "2026-01-03T09:00:00Z"),
        ("0 0 9 ? * MON-FRI", "2026-01-02T09:00:00Z", "2026-01-05T09:00:00Z"),
        ("*/15 * * * * *", "2026-01-02T09:00:14Z", "2026-01-02T09:00:15Z"),
        ("5/20 * * * * *", "2026-01-02T09:00:45Z", "2026-01-02T09:01:05Z"),
        ("0 0 0 29 2 ?", "2026-01-02T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("@daily", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
        ("@weekly", "2026-01-02T00:00:00Z", "2026-01-04T00:00:00Z"),
        ("@every 1h30m10.9s", "2026-01-02T00:00:00Z", "2026-01-02T01:30:10Z"),
        ("@every 5ms", "2026-01-02T00:00:00Z", "2026-01-02T00:00:01Z"),
        // Five fields are seconds to month: second 30, minute 9, every hour of the 1st of January.
        ("30 9 * 1 1", "2026-01-02T00:00:00Z", "2027-01-01T00:09:30Z"),
        // Both days restricted: either suffices.
        ("0 0 0 13 * FRI", "2026-01-03T00:00:00Z", "2026-01-09T00:00:00Z"),
        // A star with a step still counts as a star, so both must match.
        ("0 0 0 */2 * FRI", "2026-01-03T00:00:00Z", "2026-01-09T00:00:00Z"),
        ("0 0 0 */2 * SAT", "2026-01-03T00:00:00Z", "2026-01-17T00:00:00Z"),
    ] {
        assert_eq!(next(cron, after, &TimeZone::UTC).as_deref(), Some(expected), "{cron}");
    }
    assert_eq!(next("0 0 0 31 2 ?", "2026-01-02T00:00:00Z", &TimeZone::UTC), None);
    assert_eq!(next(", 0 0 1 1 ?", "2026-01-02T00:00:00Z", &TimeZone::UTC), None);
}

#[test]
fn invalid_expressions_are_refused_in_the_words_of_the_go_library() {
    for (cron, reason) in [
        ("", "Empty spec string"),
        ("* * * *", "Expected 5 to 6 fields, found 4: * * * *"),
        ("60 * * * * *", "End of range (60) above maximum (59): 60"),
        ("* * * 0 * *", "Beginning of range (0) below minimum (1): 0"),
        ("9-3 * * * * *", "Beginning of range (9) beyond end of range (3): 9-3"),
        ("*/0 * * * * *", "Step of range should be a positive number: */0"),
        ("1-2-3 * * * * *", "Too many hyphens: 1-2-3"),
        ("1/2/3 * * * * *", "Too many slashes: 1/2/3"),
        ("@sometimes", "Unrecognized descriptor: @sometimes"),
    ] {
        assert_eq!(Cron::parse(cron).unwrap_err(), reason, "{cron}");
    }
    for cron in [
        "x * * * * *",
        "-1 * * * * *",
        "@every",
        "@every soon",
        "@every 1",
        "* * * * * 7",
        "99999999999999999999 * * * * *",
    ] {
        assert!(Cron::parse(cron).is_err(), "{cron}");
    }
}

#[test]
fn slots_follow_the_time_zone_through_summer_time() {
    // Central European time: summer from 2026-03-29 01:00 UTC to 2026-10-25 01:00 UTC.
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    assert_eq!(next("0 0 9 * * *", "2026-03-28T12:00:00Z", &zone).unwrap(), "2026-03-29T07:00:00Z");
    // 02:30 does not exist on the 29th.
    assert_eq!(next("0 30 2 * * *", "2026-03-28T12:00:00Z", &zone).unwrap(), "2026-03-30T00:30:00Z");
    // 02:30 comes twice on the 25th.
    assert_eq!(next("0 30 2 * * *", "2026-10-24T12:00:00Z", &zone).unwrap(), "2026-10-25T00:30:00Z");
    assert_eq!(next("0 30 2 * * *", "2026-10-25T00:30:00Z", &zone).unwrap(), "2026-10-25T01:30:00Z");
}

#[test]
fn an_expression_can_have_its_own_time_zone() {
    let schedule = |cron: &str| Schedule {
        trigger: Trigger::Cron(cron.into()),
        created: at("2026-07-01T00:00:00Z"),
        ..Schedule::default()
    };
    for prefix in ["TZ", "CRON_TZ"] {
        let berlin = schedule(&format!("{prefix}=Europe/Berlin 0 0 9 * * *"));
        berlin.check().unwrap();
        assert_eq!(berlin.next(None, &TimeZone::UTC), Some(at("2026-07-01T07:00:00Z")));
    }
    assert!(schedule("TZ=Nowhere/None 0 0 9 * * *").check().unwrap_err().contains("unknown time zone"));
}

fn every(seconds: i64, catch_up: bool) -> Schedule {
    Schedule { trigger: Trigger::Every(seconds), catch_up, created: 1000, ..Schedule::default() }
}

fn minutely(catch_up: bool) -> Schedule {
    Schedule { trigger: Trigger::Cron("0 * * * * *".into()), catch_up, created: 1000, ..Schedule::default() }
}

#[test]
fn an_interval_counts_from_its_start_or_creation() {
    let zone = TimeZone::UTC;
    assert_eq!(every(60, true).next(None, &zone), Some(1060));
    let started = Schedule { start: Some(5000), end: Some(5100), ..every(60, true) };
    assert_eq!(started.next(None, &zone), Some(5060));
    assert_eq!(started.next(Some(1060), &zone), Some(5000));
    assert_eq!(started.next(Some(5060), &zone), None);
}

#[test]
fn missed_slots_are_made_up_for_one_by_one_or_only_the_newest() {
    let zone = TimeZone::UTC;
    for (schedule, all) in [(every(60, true), vec![1060, 1120, 1180]), (minutely(true), vec![1020, 1080, 1140, 1200])] {
        let due = schedule.due(None, 1201, 10, &zone);
        assert_eq!(due.slots, all);
        assert_eq!(due.next, Some(all.last().unwrap() + 60));
        // Without capacity for all, the rest stays due.
        let due = schedule.due(None, 1201, 2, &zone);
        assert_eq!((due.slots.as_slice(), due.next), (&all[..2], Some(all[2])));
        assert_eq!(schedule.due(due.last, 1201, 10, &zone).slots, all[2..]);
        assert_eq!(schedule.due(None, 1201, 0, &zone).next, Some(all[0]));

        let newest = Schedule { catch_up: false, ..schedule };
        let due = newest.due(None, 1201, 10, &zone);
        assert_eq!(due.slots, all[all.len() - 1..]);
        assert_eq!(due.next, Some(all.last().unwrap() + 60));
    }
}

#[test]
fn the_newest_of_many_missed_slots_is_found_at_once() {
    let zone = TimeZone::UTC;
    let year = 366 * 86_400;
    for schedule in [
        Schedule { trigger: Trigger::Cron("* * * * * *".into()), created: 0, ..Schedule::default() },
        Schedule { trigger: Trigger::Every(1), created: 0, ..Schedule::default() },
    ] {
        assert_eq!(schedule.due(None, year, 10, &zone).slots, [year]);
        let ended = Schedule { end: Some(77), ..schedule };
        assert_eq!(ended.due(None, year, 10, &zone), Due { slots: vec![77], last: Some(77), next: None });
    }
}

#[test]
fn the_newest_slot_is_the_last_of_all_slots() {
    let zone = TimeZone::UTC;
    for cron in ["0 */7 * * * *", "13 5 3-9/2 * * MON", "0 0 0 1,15 * ?", "0,59 59 23 * * *"] {
        let schedule = Schedule { trigger: Trigger::Cron(cron.into()), created: 12_345, ..Schedule::default() };
        for now in [12_345, 99_999, 1_234_567, 3_000_000] {
            let all = Schedule { catch_up: true, ..schedule.clone() }.due(None, now, 10_000, &zone);
            let newest = schedule.due(None, now, 10, &zone);
            assert_eq!(newest.slots.last(), all.slots.last(), "{cron} {now}");
            assert!(newest.slots.len() <= 1);
        }
    }
}

#[test]
fn a_clock_that_was_set_back_does_not_stop_the_schedule() {
    let zone = TimeZone::UTC;
    for schedule in [every(60, true), minutely(true)] {
        let ahead = schedule.due(None, 100_000, 10_000, &zone);
        let back = schedule.due(ahead.last, 2000, 10, &zone);
        assert_eq!(back.slots, Vec::<i64>::new());
        let next = back.next.unwrap();
        assert!((2001..=2060).contains(&next), "{next}");
        // The slots are the same as before.
        assert!(ahead.slots.contains(&next));
    }
}

#[test]
fn a_recurring_run_without_trigger_runs_once() {
    let once = Schedule { created: 1000, ..Schedule::default() };
    let due = once.due(None, 1000, 1, &TimeZone::UTC);
    assert_eq!(due, Due { slots: vec![1000], last: Some(1000), next: None });
}
