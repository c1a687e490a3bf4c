//! A machine under the harness sees what a host would show it.
#![forbid(unsafe_code)]

use statemachine::{
    Context, Kind, Output, SessionId, StateMachine,
    testing::{Harness, records, snapshot},
};

/// Writes down every call.
struct Diary {
    greeting: String,
    lines: Vec<String>,
}

statemachine::export!(Diary);

impl Diary {
    fn note(&mut self, context: &Context, output: &mut Output) {
        let Context { kind, index, session, sequence, .. } = context;
        self.lines.push(format!("{kind:?} {index} {session:?} {sequence}"));
        output.push(context.session, &index.to_le_bytes());
        output.log("noted");
    }
}

impl StateMachine for Diary {
    const APP: &'static str = "diary";
    const VERSION: &'static str = "1";
    const SCHEMA: u32 = 1;
    const TICKS: bool = true;

    fn init(config: &[u8]) -> Result<Self, String> {
        match config {
            b"rude" => Err("a diary isn't rude".to_owned()),
            greeting => Ok(Self { greeting: String::from_utf8_lossy(greeting).into_owned(), lines: Vec::new() }),
        }
    }

    fn apply(&mut self, context: &Context, request: &[u8], output: &mut Output) {
        self.note(context, output);
        if request == b"panic" {
            panic!("as asked");
        }
        output.reply_with(|list| list.extend(request.iter().rev()));
    }

    fn query(&self, context: &Context, request: &[u8], output: &mut Output) {
        let lines = self.lines.len();
        output.reply(format!("{} {lines} {} {}", self.greeting, context.index, request.len()).as_bytes());
    }

    fn connect(&mut self, context: &Context, output: &mut Output) {
        self.note(context, output);
    }

    fn disconnect(&mut self, context: &Context, output: &mut Output) {
        self.note(context, output);
    }

    fn tick(&mut self, context: &Context, output: &mut Output) {
        assert_eq!(context.kind, Kind::Tick);
        self.note(context, output);
    }

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        self.lines.iter().map(|line| line.clone().into_bytes())
    }

    fn restore(&mut self, _schema: u32, record: &[u8]) -> Result<(), String> {
        self.lines.push(String::from_utf8(record.to_vec()).map_err(|error| error.to_string())?);
        Ok(())
    }
}

/// The next version: counts the lines instead of keeping them.
struct Count(u64);

statemachine::export!(Count);

impl StateMachine for Count {
    const APP: &'static str = "diary";
    const VERSION: &'static str = "2";
    const SCHEMA: u32 = 2;
    const ACCEPTS_FROM: &'static [u32] = &[1];

    fn init(_config: &[u8]) -> Result<Self, String> {
        Ok(Self(0))
    }

    fn apply(&mut self, context: &Context, _request: &[u8], output: &mut Output) {
        self.0 += 1;
        output.reply(format!("{} {}", self.0, context.sequence).as_bytes());
    }

    fn query(&self, _context: &Context, _request: &[u8], _output: &mut Output) {}

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        [self.0.to_le_bytes().to_vec()].into_iter()
    }

    fn restore(&mut self, schema: u32, record: &[u8]) -> Result<(), String> {
        match schema {
            1 => self.0 += 1,
            _ => self.0 = u64::from_le_bytes(record.try_into().map_err(|_| "a count has 8 bytes")?),
        }
        Ok(())
    }

    fn restored(&mut self, _schema: u32) -> Result<(), String> {
        if self.0 > 4 { Err(format!("{} lines are too many", self.0)) } else { Ok(()) }
    }
}

#[test]
fn every_kind_of_call_arrives_with_its_context() {
    let mut harness = Harness::<Diary>::new(b"").unwrap();
    let client = harness.connect().session;
    assert_eq!(harness.request(client, b"abc").reply(), b"cba");
    let second = harness.request(client, b"");
    assert_eq!(second.reply.as_deref(), Some(&b""[..]));
    assert_eq!(second.pushed_to(client).collect::<Vec<_>>(), [3u64.to_le_bytes()]);
    assert_eq!(second.logs, ["noted"]);
    assert_eq!(harness.tick().reply, None);
    assert_eq!(harness.disconnect(client).session, client);
    let nobody = SessionId::default();
    let expected = [
        format!("Connect 1 {client:?} 0"),
        format!("Request 2 {client:?} 1"),
        format!("Request 3 {client:?} 2"),
        format!("Tick 4 {nobody:?} 0"),
        format!("Disconnect 5 {client:?} 0"),
    ];
    assert_eq!(harness.machine().lines, expected);
}

#[test]
fn a_query_sees_the_last_entry_and_changes_nothing() {
    let mut harness = Harness::<Diary>::new(b"hello").unwrap();
    let client = harness.connect().session;
    assert_eq!(harness.query(client, b"four").reply(), b"hello 1 1 4");
    assert_eq!(harness.query(SessionId::default(), b"").reply(), b"hello 1 1 0");
}

#[test]
fn a_refused_configuration_says_why() {
    assert_eq!(Harness::<Diary>::new(b"rude").err().as_deref(), Some("a diary isn't rude"));
}

#[test]
fn the_next_version_takes_over_with_its_sessions() {
    let mut harness = Harness::<Diary>::new(b"").unwrap();
    let client = harness.connect().session;
    assert_eq!(harness.request(client, b"x").reply(), b"x");
    let mut harness = harness.swap::<Count>(b"").unwrap();
    assert_eq!(harness.request(client, b"").reply(), b"3 2");
    let mut harness = harness.swap::<Count>(b"").unwrap();
    assert_eq!(harness.request(client, b"").reply(), b"4 3");
}

#[test]
fn an_older_version_and_a_state_out_of_bounds_are_refused() {
    let harness = Harness::<Count>::new(b"").unwrap();
    let error = harness.swap::<Diary>(b"").err().unwrap();
    assert_eq!(error, "diary 1 reads snapshots of schema 1 and of the others [], this one is of 2");

    let mut harness = Harness::<Diary>::new(b"").unwrap();
    (0..5).for_each(|_| drop(harness.tick()));
    assert_eq!(harness.swap::<Count>(b"").err().as_deref(), Some("5 lines are too many"));
}

#[test]
fn a_snapshot_written_by_hand_is_taken_as_one_of_an_earlier_version() {
    let old = snapshot(["one line", "", "another"]);
    let restored = Harness::<Count>::restored(b"", 1, &old).unwrap();
    assert_eq!(restored.machine().0, 3);
    let error = Harness::<Count>::restored(b"", 2, &old).err().unwrap();
    assert_eq!(error, "a count has 8 bytes");
}

#[test]
fn the_records_of_a_snapshot_are_those_that_the_machine_wrote() {
    let mut harness = Harness::<Diary>::new(b"").unwrap();
    (0..3).for_each(|_| drop(harness.tick()));
    let lines: Vec<_> = harness.machine().lines.iter().map(|line| line.clone().into_bytes()).collect();
    assert_eq!(records(&harness.snapshot_in_chunks(5)), lines);
    assert_eq!(snapshot(&lines).concat(), harness.snapshot().concat());
}

#[test]
#[should_panic(expected = "as asked")]
fn a_panic_reaches_the_test() {
    let mut harness = Harness::<Diary>::new(b"").unwrap();
    let client = harness.connect().session;
    let _ = harness.request(client, b"panic");
}
