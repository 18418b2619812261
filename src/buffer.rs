//! Fixed-size chunks of one memory region, reserved once at start and checked out by index.
//!
//! Two classes share the region: large chunks of 64 KiB, and small ones of 4 KiB that are cut from a large
//! chunk when needed and joined again when all sixteen are free. Memory is touched on first use; free lists are
//! last-in first-out, so that a busy server stays within few warm chunks; what was not used for a while is
//! given back to the system by [`Pool::give_back_idle`].
//!
//! Taking and freeing are O(1). Nothing here allocates after [`Pool::new`].

use core::num::NonZeroU32;

use crate::limits::{CHUNK_LARGE_BYTES, CHUNK_SMALL_BYTES};
use crate::sys::memory::Pages;

/// Small chunks in a large one.
const SPLIT: u32 = (CHUNK_LARGE_BYTES / CHUNK_SMALL_BYTES) as u32;
/// Free small chunks that are kept as such; beyond it, wholly free large chunks are joined again.
const SMALL_FREE_KEPT: u32 = 64;
const NONE: u32 = u32::MAX;
const LARGE_BIT: u32 = 1 << 31;

/// Names a chunk that is checked out. Not reusable after it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkId(NonZeroU32);

const _: () = assert!(size_of::<Option<ChunkId>>() == 4, "sessions hold several");

impl ChunkId {
    /// The chunk that begins with this unit; the highest bit says which class it is of.
    fn new(unit: u32, class: u32) -> ChunkId {
        ChunkId(NonZeroU32::MIN.saturating_add(unit) | class)
    }

    /// First 4-KiB unit of the chunk.
    fn unit(self) -> u32 {
        (self.0.get() & !LARGE_BIT) - 1
    }

    /// Whether this is a chunk of [`CHUNK_LARGE_BYTES`].
    pub fn is_large(self) -> bool {
        self.0.get() & LARGE_BIT != 0
    }

    /// Bytes the chunk holds.
    pub fn capacity(self) -> usize {
        if self.is_large() {
            CHUNK_LARGE_BYTES
        } else {
            CHUNK_SMALL_BYTES
        }
    }
}

/// What a chunk's owner keeps about it.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Next chunk of the same chain.
    pub next: Option<ChunkId>,
    /// Bytes in use, from the front.
    pub used: u32,
    /// CRC32C from the start of the fragment up to and including this chunk.
    pub crc: u32,
    /// Whether a fragment of a large message starts with this chunk.
    pub starts_fragment: bool,
}

/// Bookkeeping of one 4-KiB unit in three words, so that fresh bookkeeping is zeros that nobody has touched.
/// A chunk in use: its next chunk; bytes used, and whether a fragment starts in the top bit; CRC.
/// A free small chunk: its neighbours in the free list, plus one.
type Unit = [u32; 3];
const NEXT: usize = 0;
const USED: usize = 1;
const CRC: usize = 2;
const PREV_FREE: usize = 1;
const STARTS_FRAGMENT: u32 = 1 << 31;

/// A unit as the bookkeeping stores it: 0 is none.
fn plus_one(unit: u32) -> u32 {
    unit.wrapping_add(1)
}

fn minus_one(stored: u32) -> u32 {
    stored.wrapping_sub(1)
}

/// How a large chunk is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LargeState {
    /// On the stack of free large chunks; `touched` when its pages may be resident.
    Free {
        touched: bool,
    },
    Whole,
    /// Cut up; so many of its small chunks are free.
    Split {
        free: u8,
    },
}

/// The pool of chunks.
pub struct Pool {
    memory: Pages,
    units: Box<[Unit]>,
    large: Box<[LargeState]>,
    /// Free large chunks; the last was freed last.
    large_free: Vec<u32>,
    small_free_head: u32,
    small_free_len: u32,
    /// Large chunks that only [`Urgency::Reserve`] may take.
    reserve_large: u32,
    /// Lowest number of free large chunks since the last `give_back_idle`.
    large_free_low: usize,
}

/// Who asks for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Leaves the reserve alone.
    Normal,
    /// May draw from the reserve: input already read, replies, the oldest open message.
    Reserve,
}

impl Pool {
    /// A pool of `bytes` (rounded down to whole large chunks, at least four), of which `reserve_bytes` can only be
    /// taken with [`Urgency::Reserve`].
    pub fn new(bytes: u64, reserve_bytes: u64) -> Pool {
        let count = usize::try_from(bytes / CHUNK_LARGE_BYTES as u64)
            .unwrap_or(0)
            .clamp(4, 1 << 24);
        let reserve = usize::try_from(reserve_bytes.div_ceil(CHUNK_LARGE_BYTES as u64))
            .unwrap_or(usize::MAX)
            .clamp(2, count / 2);
        Pool {
            memory: Pages::zeroed(count * CHUNK_LARGE_BYTES),
            units: vec![[0; 3]; count * SPLIT as usize].into_boxed_slice(),
            large: vec![LargeState::Free { touched: false }; count].into_boxed_slice(),
            large_free: (0..count as u32).rev().collect(),
            small_free_head: NONE,
            small_free_len: 0,
            reserve_large: reserve as u32,
            large_free_low: count,
        }
    }

    /// Size of the pool, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// Bytes in free chunks of either class.
    pub fn free_bytes(&self) -> u64 {
        self.large_free.len() as u64 * CHUNK_LARGE_BYTES as u64
            + u64::from(self.small_free_len) * CHUNK_SMALL_BYTES as u64
    }

    /// Bytes of the reserve.
    pub fn reserve_bytes(&self) -> u64 {
        u64::from(self.reserve_large) * CHUNK_LARGE_BYTES as u64
    }

    /// Whether a large chunk can be had.
    pub fn has_large(&self, urgency: Urgency) -> bool {
        let spared = match urgency {
            Urgency::Normal => self.reserve_large as usize,
            Urgency::Reserve => 0,
        };
        self.large_free.len() > spared
    }

    /// Whether a small chunk can be had.
    pub fn has_small(&self, urgency: Urgency) -> bool {
        self.small_free_head != NONE || self.has_large(urgency)
    }

    /// Takes a chunk of 64 KiB.
    pub fn take_large(&mut self, urgency: Urgency) -> Option<ChunkId> {
        if !self.has_large(urgency) {
            return None;
        }
        let index = self.large_free.pop()?;
        self.large_free_low = self.large_free_low.min(self.large_free.len());
        self.large[index as usize] = LargeState::Whole;
        let unit = index * SPLIT;
        self.units[unit as usize] = [0; 3];
        Some(ChunkId::new(unit, LARGE_BIT))
    }

    /// Takes a chunk of 4 KiB.
    pub fn take_small(&mut self, urgency: Urgency) -> Option<ChunkId> {
        if self.small_free_head == NONE {
            if !self.has_large(urgency) {
                return None;
            }
            self.split_large();
        }
        let unit = self.small_free_head;
        self.unlink_small(unit);
        match &mut self.large[(unit / SPLIT) as usize] {
            LargeState::Split { free } => *free -= 1,
            _ => unreachable!("invariant: a free small chunk lies in a split large chunk"),
        }
        self.units[unit as usize] = [0; 3];
        Some(ChunkId::new(unit, 0))
    }

    fn split_large(&mut self) {
        let Some(index) = self.large_free.pop() else {
            return;
        };
        self.large_free_low = self.large_free_low.min(self.large_free.len());
        self.large[index as usize] = LargeState::Split { free: SPLIT as u8 };
        for unit in (index * SPLIT..(index + 1) * SPLIT).rev() {
            self.link_small(unit);
        }
    }

    fn link_small(&mut self, unit: u32) {
        let head = self.small_free_head;
        self.units[unit as usize] = [plus_one(head), 0, 0];
        if head != NONE {
            self.units[head as usize][PREV_FREE] = plus_one(unit);
        }
        self.small_free_head = unit;
        self.small_free_len += 1;
    }

    fn unlink_small(&mut self, unit: u32) {
        let [next, prev, _] = self.units[unit as usize];
        let (next, prev) = (minus_one(next), minus_one(prev));
        if prev == NONE {
            self.small_free_head = next;
        } else {
            self.units[prev as usize][NEXT] = plus_one(next);
        }
        if next != NONE {
            self.units[next as usize][PREV_FREE] = plus_one(prev);
        }
        self.small_free_len -= 1;
    }

    /// Gives one chunk back; its content is undefined afterwards.
    ///
    /// # Panics
    /// When the chunk is not checked out (a double free would hand one chunk to two messages).
    pub fn free(&mut self, id: ChunkId) {
        let index = id.unit() / SPLIT;
        if id.is_large() {
            assert!(
                self.large[index as usize] == LargeState::Whole,
                "large chunk freed twice"
            );
            self.large[index as usize] = LargeState::Free { touched: true };
            self.large_free.push(index);
            return;
        }
        let LargeState::Split { free } = &mut self.large[index as usize] else {
            panic!("small chunk freed twice");
        };
        *free += 1;
        assert!(u32::from(*free) <= SPLIT, "small chunk freed twice");
        let wholly_free = u32::from(*free) == SPLIT;
        self.link_small(id.unit());
        if wholly_free && self.small_free_len > SMALL_FREE_KEPT {
            for unit in index * SPLIT..(index + 1) * SPLIT {
                self.unlink_small(unit);
            }
            self.large[index as usize] = LargeState::Free { touched: true };
            self.large_free.push(index);
        }
    }

    /// Gives a chain of chunks back.
    pub fn free_chain(&mut self, first: ChunkId) {
        let mut next = Some(first);
        while let Some(id) = next {
            next = self.meta(id).next;
            self.free(id);
        }
    }

    /// All bytes of a chunk.
    pub fn bytes(&self, id: ChunkId) -> &[u8] {
        let start = id.unit() as usize * CHUNK_SMALL_BYTES;
        &self.memory[start..start + id.capacity()]
    }

    /// All bytes of a chunk, for writing.
    pub fn bytes_mut(&mut self, id: ChunkId) -> &mut [u8] {
        let start = id.unit() as usize * CHUNK_SMALL_BYTES;
        &mut self.memory[start..start + id.capacity()]
    }

    /// What the owner keeps about a chunk.
    pub fn meta(&self, id: ChunkId) -> Meta {
        let unit = &self.units[id.unit() as usize];
        Meta {
            next: NonZeroU32::new(unit[NEXT]).map(ChunkId),
            used: unit[USED] & !STARTS_FRAGMENT,
            crc: unit[CRC],
            starts_fragment: unit[USED] & STARTS_FRAGMENT != 0,
        }
    }

    /// Changes what the owner keeps about a chunk.
    pub fn set_meta(&mut self, id: ChunkId, meta: Meta) {
        self.units[id.unit() as usize] = [
            meta.next.map_or(0, |next| next.0.get()),
            meta.used
                | if meta.starts_fragment {
                    STARTS_FRAGMENT
                } else {
                    0
                },
            meta.crc,
        ];
    }

    /// Bytes that may still be written behind what is used.
    pub fn room(&self, id: ChunkId) -> usize {
        id.capacity() - self.meta(id).used as usize
    }

    /// What may still be written behind what is used; [`Pool::take_room`] counts it as used.
    pub fn room_mut(&mut self, id: ChunkId) -> &mut [u8] {
        let used = self.meta(id).used as usize;
        &mut self.bytes_mut(id)[used..]
    }

    /// Counts `bytes` at the front of [`Pool::room_mut`] as used.
    ///
    /// # Panics
    /// When there is less room.
    pub fn take_room(&mut self, id: ChunkId, bytes: usize) {
        assert!(
            bytes <= self.room(id),
            "invariant: who fills a chunk knows its room"
        );
        self.units[id.unit() as usize][USED] += bytes as u32;
    }

    /// Copies `parts` one after the other behind what is used; there is room for all of them.
    pub fn append_all<'a>(&mut self, id: ChunkId, parts: impl IntoIterator<Item = &'a [u8]>) {
        let used = self.meta(id).used as usize;
        let mut room = &mut self.bytes_mut(id)[used..];
        let before = room.len();
        for part in parts {
            let (front, behind) = room.split_at_mut(part.len());
            front.copy_from_slice(part);
            room = behind;
        }
        let taken = before - room.len();
        self.units[id.unit() as usize][USED] += taken as u32;
    }

    /// Copies as much of `bytes` as fits behind what is used; returns how much.
    pub fn append(&mut self, id: ChunkId, bytes: &[u8]) -> usize {
        let used = self.meta(id).used as usize;
        let take = bytes.len().min(id.capacity() - used);
        self.bytes_mut(id)[used..used + take].copy_from_slice(&bytes[..take]);
        self.units[id.unit() as usize][USED] += take as u32;
        take
    }

    /// Hands memory back to the system that no chunk has needed since the last call. `release` gets each range
    /// of 64 KiB and may drop its pages; their content is undefined. Call it every ten seconds or so; the work
    /// is bounded by the number of large chunks.
    pub fn give_back_idle(&mut self, mut release: impl FnMut(&mut [u8])) {
        // The stack's bottom `large_free_low` entries were not touched since the last call.
        for &index in &self.large_free[..self.large_free_low.min(self.large_free.len())] {
            if self.large[index as usize] == (LargeState::Free { touched: true }) {
                self.large[index as usize] = LargeState::Free { touched: false };
                let start = index as usize * CHUNK_LARGE_BYTES;
                release(&mut self.memory[start..start + CHUNK_LARGE_BYTES]);
            }
        }
        self.large_free_low = self.large_free.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(large: u64) -> Pool {
        Pool::new(
            large * CHUNK_LARGE_BYTES as u64,
            2 * CHUNK_LARGE_BYTES as u64,
        )
    }

    #[test]
    fn normal_takers_leave_the_reserve_alone() {
        let mut pool = pool(8);
        let mut taken = Vec::new();
        while let Some(id) = pool.take_large(Urgency::Normal) {
            taken.push(id);
        }
        assert_eq!(taken.len(), 6);
        assert!(!pool.has_small(Urgency::Normal));
        assert_eq!(pool.take_small(Urgency::Normal), None);
        assert!(pool.take_small(Urgency::Reserve).is_some());
        assert!(pool.take_large(Urgency::Reserve).is_some());
        assert_eq!(pool.take_large(Urgency::Reserve), None);
    }

    #[test]
    fn everything_freed_is_whole_again() {
        let mut pool = pool(32);
        let total = pool.free_bytes();
        let mut taken: Vec<ChunkId> = Vec::new();
        let mut state = 7_u64;
        for round in 0..50_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(3) && !taken.is_empty() {
                let id = taken.swap_remove(state as usize / 3 % taken.len());
                pool.free(id);
            } else if state.is_multiple_of(5) {
                taken.extend(pool.take_large(Urgency::Normal));
            } else {
                taken.extend(pool.take_small(Urgency::Reserve));
            }
            if round % 1_000 == 0 {
                let held: u64 = taken.iter().map(|id| id.capacity() as u64).sum();
                assert_eq!(pool.free_bytes() + held, total);
            }
        }
        for id in taken {
            pool.free(id);
        }
        assert_eq!(pool.free_bytes(), total);
        // At most the kept small chunks are still cut up.
        let mut large = 0;
        while pool.take_large(Urgency::Reserve).is_some() {
            large += 1;
        }
        assert!(large >= 32 - SMALL_FREE_KEPT.div_ceil(SPLIT) - 1, "{large}");
    }

    #[test]
    fn chunks_do_not_overlap() {
        let mut pool = pool(6);
        let mut taken = Vec::new();
        for turn in 0..40_u8 {
            let id = if turn % 10 == 0 {
                pool.take_large(Urgency::Reserve)
            } else {
                pool.take_small(Urgency::Reserve)
            };
            let Some(id) = id else { break };
            pool.bytes_mut(id).fill(turn);
            taken.push((id, turn));
        }
        for (id, turn) in taken {
            assert!(pool.bytes(id).iter().all(|&byte| byte == turn));
        }
    }

    #[test]
    fn idle_chunks_are_given_back_once() {
        let mut pool = pool(8);
        let a = pool.take_large(Urgency::Normal).expect("fresh pool");
        let b = pool.take_large(Urgency::Normal).expect("fresh pool");
        pool.free(a);
        pool.free(b);
        let mut released = 0;
        pool.give_back_idle(|_| released += 1);
        assert_eq!(released, 0, "both were used since the start");
        pool.give_back_idle(|range| {
            assert_eq!(range.len(), CHUNK_LARGE_BYTES);
            released += 1;
        });
        assert_eq!(released, 2);
        pool.give_back_idle(|_| released += 1);
        assert_eq!(released, 2);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_stops_the_process() {
        let mut pool = pool(4);
        let id = pool.take_large(Urgency::Normal).expect("fresh pool");
        pool.free(id);
        pool.free(id);
    }
}
