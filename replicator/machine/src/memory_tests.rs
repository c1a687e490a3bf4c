//! Mappings on their own.

use super::*;

const PAGE: usize = 4 << 10;

fn mapping(backing: Backing, size: usize) -> Mapping {
    Mapping::new(backing, size, 1 << 30, 32 << 20).unwrap()
}

fn bytes(mapping: &mut Mapping) -> &mut [u8] {
    // SAFETY: as for wasmtime: valid for `size` bytes, borrowed with the mapping.
    unsafe { std::slice::from_raw_parts_mut(mapping.base, mapping.size) }
}

#[test]
fn a_view_reads_what_is_live_and_keeps_its_writes_to_itself() {
    let mut live = mapping(Backing::Live, 16 * PAGE);
    bytes(&mut live)[5] = 1;
    let mut view = mapping(Backing::View(Arc::clone(&live.file)), 16 * PAGE);
    assert_eq!(bytes(&mut view)[5], 1);
    bytes(&mut view)[5] = 2;
    bytes(&mut view)[9 * PAGE] = 3;
    assert_eq!((bytes(&mut live)[5], bytes(&mut live)[9 * PAGE]), (1, 0));
    live.file.discard_view(16 * PAGE).unwrap();
    assert_eq!((bytes(&mut view)[5], bytes(&mut view)[9 * PAGE]), (1, 0));
}

#[test]
fn the_pages_that_a_view_wrote_are_known() {
    let mut live = mapping(Backing::Live, 256 * PAGE);
    bytes(&mut live).fill(7);
    let mut view = mapping(Backing::View(Arc::clone(&live.file)), 256 * PAGE);
    let file = Arc::clone(&live.file);
    let pages = || file.private_pages(256 * PAGE).map(Iterator::collect::<Vec<_>>);
    let Some(none) = pages() else { return }; // an older kernel
    assert_eq!(none, []);
    assert!(bytes(&mut view).iter().all(|&byte| byte == 7));
    assert_eq!(pages().unwrap(), [], "reading makes no page private");
    for page in [0, 1, 7, 255] {
        bytes(&mut view)[page * PAGE + 77] = 8;
    }
    let expected = [0..2 * PAGE, 7 * PAGE..8 * PAGE, 255 * PAGE..256 * PAGE];
    assert_eq!(pages().unwrap(), expected);
    file.discard_view(256 * PAGE).unwrap();
    assert_eq!(pages().unwrap(), []);
    bytes(&mut view).fill(9);
    assert!(pages().is_none(), "too many");
    file.discard_view(256 * PAGE).unwrap();
    (0..SCAN_REGIONS_MAX + 2).for_each(|i| bytes(&mut view)[2 * i * PAGE] = 8);
    assert!(pages().is_none(), "too scattered");
}

#[test]
fn memory_grows_in_place_with_zeros() {
    let mut live = mapping(Backing::Live, 0);
    let base = live.as_ptr();
    for size in [16 * PAGE, 16 * PAGE, 64 * PAGE] {
        live.grow_to(size).unwrap();
        assert_eq!((live.byte_size(), live.as_ptr()), (size, base));
        assert!(bytes(&mut live).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_dropped_view_leaves_the_next_one_alone() {
    let live = mapping(Backing::Live, PAGE);
    let old = mapping(Backing::View(Arc::clone(&live.file)), PAGE);
    let mut new = mapping(Backing::View(Arc::clone(&live.file)), PAGE);
    drop(old);
    bytes(&mut new)[0] = 1;
    live.file.discard_view(PAGE).unwrap();
    assert_eq!(bytes(&mut new)[0], 0);
}
