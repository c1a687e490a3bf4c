//! Which transitions of docs/chain.md have been taken, told from outside: by what went in and what came out.

use std::collections::BTreeMap;

use replicator_chain::{
    CoordinatorEffect, Effect, Event, Message, PersistOrder, Phase, Progress, Refusal, Role, Standing,
};

/// Every transition of docs/chain.md, each case of it by itself. Two are missing, as whole nodes never take them; unit tests do. An asker that
/// doesn't hold the position that it is named in answer to `Fetch` asks lower: only a log's last epoch can be nobody else's, so it
/// always holds it. And a coordinator is never told of a regressed disk's end: the replica finds out first, and stops.
pub(crate) const ALL: &[&str] = &[
    "configured: a member enters",
    "configured: who isn't named is a learner",
    "configured: who lost what it confirmed stops",
    "proposed: parallel appends and sends",
    "proposed: backups first holds and sends",
    "proposed: alone appends",
    "proposed: refused, no primary",
    "proposed: refused, the chain is too short",
    "append: appended and forwarded",
    "append: appended by the tail",
    "append: a gap is answered",
    "append: what is there is skipped",
    "append: commit rises",
    "append: a barrier is passed on",
    "append: a barrier is answered by the tail",
    "durable: the tail acknowledges",
    "durable: the primary commits",
    "durable: a sealed replica answers",
    "acknowledged: passed on",
    "acknowledged: held entries are appended",
    "acknowledged: the primary commits",
    "acknowledged: after a gap it is sent again",
    "acknowledged: a barrier answers its reads",
    "read: a barrier goes",
    "read: alone, at once",
    "read: refused, no primary",
    "read: refused by a seal",
    "read: refused by a configuration",
    "seal: an active replica",
    "seal: a learner",
    "seal: a sealed one, again",
    "seal: an old configuration is answered with the new one",
    "seal: a lesser attempt is ignored",
    "equalise: at the target",
    "equalise: truncates",
    "equalise: fetches",
    "equalise: of another attempt is ignored",
    "equalise: of an old epoch is ignored",
    "fetch: for the attempt",
    "fetch: what is committed",
    "fetch: not answered",
    "fetch: an earlier position is named",
    "fetch: so much is purged",
    "purged: an image is wanted",
    "image: the log begins behind it",
    "image: none came, or it isn't wanted any more",
    "fetched: appended",
    "fetched: truncates to the common position",
    "lower epoch: told the configuration",
    "higher epoch: asks for the configuration",
    "connected: what was under way is sent again",
    "tick: a heartbeat",
    "tick: a beat",
    "tick: asks again",
    "watching → granting: silent",
    "watching → granting: anew",
    "watching → granting: sealed",
    "watching → granting: stuck",
    "watching → granting: stalled",
    "watching → granting: learner",
    "watching → granting: held back",
    "watching → granting: wish",
    "granting → sealing",
    "granting → watching: another's grant",
    "sealing → equalising",
    "sealing → equalising: by the bound",
    "sealing → watching: another's grant",
    "equalising → configuring",
    "equalising → configuring: by the bound",
    "equalising → watching: nobody eligible is left",
    "equalising → watching: another's grant",
    "configuring → watching: the next epoch",
    "configuring → watching: another's grant",
    "any → following: stops leading",
    "coordinator: tells the configuration",
    "coordinator: a wish is done",
    "coordinator: a wish is refused",
];

#[derive(Debug, Default)]
pub(crate) struct Transitions(pub(crate) BTreeMap<&'static str, usize>);

impl Transitions {
    fn note(&mut self, name: &'static str) {
        assert!(ALL.contains(&name), "{name:?} is not in the list");
        *self.0.entry(name).or_default() += 1;
    }

    fn note_if(&mut self, holds: bool, name: &'static str) {
        if holds {
            self.note(name);
        }
    }

    pub(crate) fn of_replica(
        &mut self,
        before: &Standing,
        event: &Event,
        effects: &[Effect],
        after: &Standing,
        order: PersistOrder,
    ) {
        let sends = |is: &dyn Fn(&Message) -> bool| {
            effects.iter().any(|effect| matches!(effect, Effect::Send { message, .. } if is(message)))
        };
        let appends = effects.iter().any(|effect| matches!(effect, Effect::AppendLog(_)));
        let truncates = effects.iter().any(|effect| matches!(effect, Effect::TruncateLog(_)));
        let commits = effects.iter().any(|effect| matches!(effect, Effect::Committed(_)));
        let reads_refused = effects.iter().any(|effect| matches!(effect, Effect::ReadRefused { .. }));
        let reads_confirmed = effects.iter().any(|effect| matches!(effect, Effect::ReadConfirmed { .. }));
        let acknowledges = sends(&|message| matches!(message, Message::Acknowledged { .. }));
        let forwards = sends(&|message| matches!(message, Message::Append { entries, .. } if !entries.is_empty()));
        for effect in effects {
            match effect {
                Effect::Entered(_) => self.note("configured: a member enters"),
                Effect::Left(_) => self.note("configured: who isn't named is a learner"),
                Effect::GetImage { .. } => self.note("purged: an image is wanted"),
                Effect::Damaged(_) => self.note("configured: who lost what it confirmed stops"),
                Effect::Refused { reason: Refusal::NotPrimary, .. } => self.note("proposed: refused, no primary"),
                Effect::Refused { reason: Refusal::ChainTooShort, .. } => {
                    self.note("proposed: refused, the chain is too short");
                }
                _ => {}
            }
        }
        match event {
            Event::Proposed { .. } if before.role == Role::Primary => {
                let alone = before.chain.len() == 1;
                self.note_if(alone && appends, "proposed: alone appends");
                let parallel = order == PersistOrder::Parallel;
                self.note_if(!alone && parallel && appends && forwards, "proposed: parallel appends and sends");
                self.note_if(!alone && !parallel && !appends && forwards, "proposed: backups first holds and sends");
            }
            Event::LogDurable(_) => {
                self.note_if(before.role == Role::Tail && acknowledges, "durable: the tail acknowledges");
                self.note_if(before.role == Role::Primary && commits, "durable: the primary commits");
                let answers = sends(&|message| matches!(message, Message::Sealed { .. } | Message::Equal { .. }));
                self.note_if(before.role == Role::Sealed && answers, "durable: a sealed replica answers");
            }
            Event::ReadAsked { .. } => {
                let barrier = sends(&|message| matches!(message, Message::Append { .. }));
                self.note_if(barrier, "read: a barrier goes");
                self.note_if(reads_confirmed, "read: alone, at once");
                self.note_if(reads_refused && before.role != Role::Primary, "read: refused, no primary");
            }
            Event::Configured { .. } => {
                self.note_if(reads_refused && before.role == Role::Primary, "read: refused by a configuration");
            }
            Event::Connected(_) => {
                let again = sends(&|message| matches!(message, Message::Append { .. } | Message::Acknowledged { .. }));
                self.note_if(again, "connected: what was under way is sent again");
            }
            Event::Tick => {
                self.note_if(sends(&|message| matches!(message, Message::Append { .. })), "tick: a heartbeat");
                self.note_if(sends(&|message| matches!(message, Message::Beat { .. })), "tick: a beat");
                let asks = sends(&|message| matches!(message, Message::Fetch { .. }));
                self.note_if(asks && before.fetching.is_some(), "tick: asks again");
            }
            Event::Received { message, .. } => self.of_message(before, message, effects, after),
            Event::ImageHere(_) => {
                let enters = effects.iter().any(|effect| matches!(effect, Effect::EnterImage(_)));
                self.note_if(enters, "image: the log begins behind it");
                self.note_if(!enters, "image: none came, or it isn't wanted any more");
            }
            Event::Proposed { .. } | Event::PromiseStored(_) | Event::Coordinator(_) => {}
        }
        if let Event::Received { message, .. } = event {
            let role = before.role;
            match message {
                Message::Append { entries, epoch, .. } if *epoch == before.epoch => {
                    self.note_if(role == Role::Middle && appends && forwards, "append: appended and forwarded");
                    self.note_if(role == Role::Tail && appends, "append: appended by the tail");
                    let skips = matches!(role, Role::Middle | Role::Tail) && !entries.is_empty() && !appends;
                    self.note_if(
                        skips && entries.last().map(|e| e.position) <= before.last,
                        "append: what is there is skipped",
                    );
                    self.note_if(commits, "append: commit rises");
                }
                Message::Acknowledged { epoch, gap, .. } if *epoch == before.epoch => {
                    self.note_if(role == Role::Middle && acknowledges, "acknowledged: passed on");
                    self.note_if(role == Role::Primary && appends, "acknowledged: held entries are appended");
                    self.note_if(role == Role::Primary && commits, "acknowledged: the primary commits");
                    self.note_if(*gap && forwards, "acknowledged: after a gap it is sent again");
                    self.note_if(reads_confirmed, "acknowledged: a barrier answers its reads");
                }
                Message::Fetched { .. } => {
                    self.note_if(appends, "fetched: appended");
                    self.note_if(truncates, "fetched: truncates to the common position");
                }
                Message::Equalise { .. } => self.note_if(truncates, "equalise: truncates"),
                Message::Seal { .. } => self.note_if(reads_refused, "read: refused by a seal"),
                _ => {}
            }
        }
    }

    fn of_message(&mut self, before: &Standing, message: &Message, effects: &[Effect], after: &Standing) {
        let sends = |is: &dyn Fn(&Message) -> bool| {
            effects.iter().any(|effect| matches!(effect, Effect::Send { message, .. } if is(message)))
        };
        let tells = sends(&|message| matches!(message, Message::Configured { .. }));
        let asks = sends(&|message| matches!(message, Message::Fetch { .. }));
        let (epoch, role) = (before.epoch, before.role);
        match message {
            Message::Append { epoch: e, .. } | Message::Acknowledged { epoch: e, .. } if *e < epoch => {
                self.note_if(tells, "lower epoch: told the configuration");
            }
            Message::Append { epoch: e, .. } | Message::Acknowledged { epoch: e, .. } if *e > epoch => {
                let beats = sends(&|message| matches!(message, Message::Beat { .. }));
                self.note_if(beats, "higher epoch: asks for the configuration");
            }
            Message::Append { barrier, .. } if *barrier > 0 => {
                let on = sends(&|message| matches!(message, Message::Append { barrier: b, .. } if b == barrier));
                self.note_if(role == Role::Middle && on, "append: a barrier is passed on");
                let answers =
                    sends(&|message| matches!(message, Message::Acknowledged { barrier: b, .. } if b == barrier));
                self.note_if(role == Role::Tail && answers, "append: a barrier is answered by the tail");
            }
            Message::Append { .. } => {
                self.note_if(
                    sends(&|message| matches!(message, Message::Acknowledged { gap: true, .. })),
                    "append: a gap is answered",
                );
            }
            Message::Seal { configuration, .. } => {
                let seals = after.role == Role::Sealed;
                let active = matches!(role, Role::Primary | Role::Middle | Role::Tail);
                self.note_if(active && seals, "seal: an active replica");
                self.note_if(role == Role::Learner && seals, "seal: a learner");
                let again = sends(&|message| matches!(message, Message::Sealed { .. }));
                self.note_if(role == Role::Sealed && again, "seal: a sealed one, again");
                let older = configuration.epoch < epoch;
                self.note_if(older && tells, "seal: an old configuration is answered with the new one");
                self.note_if(!older && effects.is_empty(), "seal: a lesser attempt is ignored");
            }
            Message::Equalise { promise, .. } => {
                let equal = sends(&|message| matches!(message, Message::Equal { .. }));
                self.note_if(equal, "equalise: at the target");
                self.note_if(asks, "equalise: fetches");
                self.note_if(promise.epoch < epoch, "equalise: of an old epoch is ignored");
                let other = promise.epoch == epoch && *promise != before.promise;
                self.note_if(other && effects.is_empty(), "equalise: of another attempt is ignored");
            }
            Message::Fetch { attempt, last, .. } => {
                let answer = effects.iter().find_map(|effect| match effect {
                    Effect::Send { message: Message::Fetched { previous, .. }, .. } => Some(previous),
                    _ => None,
                });
                self.note_if(answer.is_some() && attempt.is_some(), "fetch: for the attempt");
                self.note_if(answer.is_some() && attempt.is_none(), "fetch: what is committed");
                let purged = sends(&|message| matches!(message, Message::Purged { .. }));
                self.note_if(purged, "fetch: so much is purged");
                self.note_if(answer.is_none() && !purged, "fetch: not answered");
                self.note_if(answer.is_some_and(|previous| previous != last), "fetch: an earlier position is named");
            }
            _ => {}
        }
    }

    pub(crate) fn of_coordinator(
        &mut self,
        before: &Progress,
        recorded: bool,
        effects: &[CoordinatorEffect],
        after: &Progress,
    ) {
        for effect in effects {
            match effect {
                CoordinatorEffect::WishDone(_) => self.note("coordinator: a wish is done"),
                CoordinatorEffect::WishRefused(..) => self.note("coordinator: a wish is refused"),
                CoordinatorEffect::Send { message: Message::Configured { .. }, .. } => {
                    self.note("coordinator: tells the configuration");
                }
                CoordinatorEffect::Propose(_)
                | CoordinatorEffect::Send { .. }
                | CoordinatorEffect::Regressed { .. } => {}
            }
        }
        let told = effects
            .iter()
            .any(|effect| matches!(effect, CoordinatorEffect::Send { message: Message::Configured { .. }, .. }));
        let waited = !before.waiting_for.is_empty() && before.ticks >= 3;
        match (before.phase, after.phase) {
            (Phase::Granting, Phase::Sealing) => self.note("granting → sealing"),
            (Phase::Sealing, Phase::Equalising) => {
                self.note(if waited { "sealing → equalising: by the bound" } else { "sealing → equalising" });
            }
            (Phase::Equalising, Phase::Configuring) => {
                self.note(if waited {
                    "equalising → configuring: by the bound"
                } else {
                    "equalising → configuring"
                });
            }
            (Phase::Equalising, Phase::Watching) if !recorded => {
                self.note("equalising → watching: nobody eligible is left");
            }
            (Phase::Configuring, Phase::Watching | Phase::Granting) if told => {
                self.note("configuring → watching: the next epoch");
            }
            (Phase::Granting, Phase::Watching) if !told => self.note("granting → watching: another's grant"),
            (Phase::Sealing, Phase::Watching) if !told => self.note("sealing → watching: another's grant"),
            (Phase::Equalising, Phase::Watching) if !told => self.note("equalising → watching: another's grant"),
            (Phase::Configuring, Phase::Watching) if !told => self.note("configuring → watching: another's grant"),
            (Phase::Following, _) => {}
            (_, Phase::Following) => self.note("any → following: stops leading"),
            _ => {}
        }
        if before.phase != Phase::Granting && after.phase == Phase::Granting {
            let reason = after.reason.as_deref().unwrap_or_default();
            for (says, name) in [
                ("is silent", "watching → granting: silent"),
                ("has started again", "watching → granting: anew"),
                ("is sealed", "watching → granting: sealed"),
                ("doesn't hear", "watching → granting: stuck"),
                ("is committed", "watching → granting: stalled"),
                ("can be let in", "watching → granting: learner"),
                ("is held back", "watching → granting: held back"),
                ("wished", "watching → granting: wish"),
            ] {
                self.note_if(reason.contains(says), name);
            }
        }
    }
}
