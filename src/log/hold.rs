//! Taking locks. The log's critical sections are short and do not panic, so none of its locks is ever poisoned.

use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

const WHY: &str = "nobody panics while holding it";

pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(WHY)
}

pub(super) fn hold_read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().expect(WHY)
}

pub(super) fn hold_write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().expect(WHY)
}
