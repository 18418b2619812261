//! What tools and consumers ask of the log through their socket, carried out between turns.

use super::Shared;
use super::storage::Committer;
use crate::ctl::{Attachments, Cursor, Progress, Refusal, RingControl, RingFacts};
use crate::ringlog::backing::Backing;
use crate::ringlog::format::ConsumerName;
use crate::ringlog::writer::{ConsumerError, Log, StartAt};

/// The log as control sessions see it.
pub struct Control<'a, B: Backing> {
    /// The log.
    pub log: &'a mut Log<B>,
    /// Names that a process is attached to.
    pub attachments: &'a mut Attachments,
    /// Shard number.
    pub shard: u16,
    /// What happened to consumers, for the log: event and name.
    pub events: Vec<(&'static str, String)>,
    /// Status document.
    pub status_json: &'a [u8],
}

impl<'a, B: Backing> Control<'a, B> {
    /// The log of this server; none for one that keeps nothing.
    pub fn of<C: Committer>(
        shared: &'a mut Shared<B, C>,
        status_json: &'a [u8],
    ) -> Option<Control<'a, B>> {
        let storage = shared.storage.as_mut()?;
        Some(Control {
            log: &mut storage.log,
            attachments: &mut shared.attachments,
            shard: shared.options.shard,
            events: Vec::new(),
            status_json,
        })
    }
}

fn refusal(error: ConsumerError) -> Refusal {
    match error {
        ConsumerError::Exists => Refusal::InUse,
        ConsumerError::Unknown => Refusal::NoSuchConsumer,
        ConsumerError::TableFull => Refusal::TableFull,
        ConsumerError::NotKept | ConsumerError::NotARecord | ConsumerError::GoesBack => {
            Refusal::Position
        }
        ConsumerError::Overwrite | ConsumerError::Failed(_) => Refusal::Unavailable,
    }
}

fn name_of(name: &str) -> Result<ConsumerName, Refusal> {
    ConsumerName::new(name).ok_or(Refusal::Name)
}

impl<B: Backing> RingControl for Control<'_, B> {
    fn facts(&self) -> RingFacts {
        let superblock = self.log.superblock();
        RingFacts {
            ring_id: superblock.ring_id,
            shard: u32::from(self.shard),
            data_offset: superblock.data_offset,
            data_bytes: superblock.data_size,
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            // What a consumer hands on must not be un-sent by a power cut that the level promises to survive.
            durable: self.log.acknowledged(),
            tail: self.log.tail(),
            next_number: self.log.next_number(),
        }
    }

    fn register(&mut self, name: &str, create: Option<u64>) -> Result<Cursor, Refusal> {
        let text = name;
        let name = name_of(name)?;
        let known = self.log.consumer(&name).is_some();
        let consumer = match (self.log.consumer(&name), create) {
            (Some(consumer), _) => *consumer,
            (None, Some(position)) => self
                .log
                .register(name, StartAt::Position(position))
                .map_err(refusal)?,
            (None, None) => return Err(Refusal::NoSuchConsumer),
        };
        let event = if known { "attached" } else { "registered" };
        self.events.push((event, text.to_owned()));
        Ok(Cursor {
            scan_pos: consumer.scan_pos,
            done_pos: consumer.done_pos,
        })
    }

    fn acknowledge(&mut self, name: &str, cursor: Cursor) -> Result<(), Refusal> {
        self.log
            .acknowledge(&name_of(name)?, cursor.scan_pos, cursor.done_pos)
            .map_err(refusal)
    }

    fn seek(&mut self, name: &str, pos: u64) -> Result<(), Refusal> {
        self.log
            .seek(&name_of(name)?, StartAt::Position(pos))
            .map_err(refusal)?;
        self.events.push(("moved", name.to_owned()));
        Ok(())
    }

    fn drop_consumer(&mut self, name: &str) -> Result<(), Refusal> {
        self.log.drop_consumer(&name_of(name)?).map_err(refusal)?;
        self.events.push(("dropped", name.to_owned()));
        Ok(())
    }

    fn consumers(&self, each: &mut dyn FnMut(&str, Cursor)) {
        for consumer in self.log.consumers() {
            let cursor = Cursor {
                scan_pos: consumer.scan_pos,
                done_pos: consumer.done_pos,
            };
            each(consumer.name.as_str(), cursor);
        }
    }

    fn status_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.status_json);
    }

    fn attachments(&mut self) -> &mut Attachments {
        self.attachments
    }
}
