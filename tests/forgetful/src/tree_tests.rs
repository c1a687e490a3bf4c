//! What survives a power loss, name by name.

use super::*;

fn tree() -> Tree {
    Tree::new((0, 0))
}

fn file(tree: &mut Tree, name: &str, bytes: &[u8]) -> u64 {
    let number = tree.make(ROOT, name.as_ref(), Kind::File(File::default()), 0o600, (0, 0)).expect("a new name");
    tree.file_mut(number).expect("a file").write(0, bytes);
    number
}

/// The files of the folder, with their bytes.
fn found(tree: &Tree) -> Vec<(String, Vec<u8>)> {
    let names = tree.folder(ROOT).expect("the root").names();
    names
        .map(|(name, number)| {
            let bytes = tree.file(number).map(|file| file.read(0, usize::MAX)).unwrap_or_default();
            (name.to_string_lossy().into_owned(), bytes)
        })
        .collect()
}

#[test]
fn synced_file_without_its_synced_folder_is_gone() {
    let mut tree = tree();
    let number = file(&mut tree, "a", b"one");
    tree.sync_file(number).expect("a file");
    assert_eq!(tree.forget(None), Unsynced { blocks: 0, names: 1 });
    assert_eq!(found(&tree), []);
}

#[test]
fn synced_name_of_an_unsynced_file_is_an_empty_file() {
    let mut tree = tree();
    file(&mut tree, "a", b"one");
    tree.sync_folder(ROOT).expect("a folder");
    assert_eq!(tree.unsynced_files(), 1);
    assert_eq!(tree.forget(None), Unsynced { blocks: 1, names: 0 });
    assert_eq!(found(&tree), [("a".into(), vec![])]);
}

#[test]
fn replacement_is_the_old_or_the_new_file_and_only_the_new_after_the_folders_fsync() {
    let prepared = || {
        let mut tree = tree();
        let old = file(&mut tree, "a", b"old");
        tree.sync_file(old).expect("a file");
        tree.sync_folder(ROOT).expect("a folder");
        let new = file(&mut tree, "a.new", b"new");
        tree.sync_file(new).expect("a file");
        tree.rename((ROOT, "a.new".as_ref()), (ROOT, "a".as_ref()), true).expect("both are there");
        tree
    };
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let mut tree = prepared();
        tree.forget(Some(&mut Chance::new(seed)));
        let found = found(&tree);
        assert!(found.contains(&("a".into(), b"old".into())) || found == [("a".into(), b"new".into())], "{found:?}");
        seen.insert(found);
    }
    assert_eq!(seen.len(), 3, "neither, the new name beside the old one, or the renaming: {seen:?}");
    let mut tree = prepared();
    tree.sync_folder(ROOT).expect("a folder");
    tree.forget(None);
    assert_eq!(found(&tree), [("a".into(), b"new".into())]);
}

#[test]
fn removed_file_comes_back_unless_its_folder_was_synced() {
    let mut tree = tree();
    let number = file(&mut tree, "a", b"one");
    tree.sync_file(number).expect("a file");
    tree.sync_folder(ROOT).expect("a folder");
    tree.remove(ROOT, "a".as_ref(), false).expect("it is there");
    assert_eq!(found(&tree), []);
    tree.forget(None);
    assert_eq!(found(&tree), [("a".into(), b"one".into())]);
    tree.remove(ROOT, "a".as_ref(), false).expect("it is there");
    tree.sync_folder(ROOT).expect("a folder");
    tree.forget(None);
    assert_eq!(found(&tree), []);
    assert!(tree.node(number).is_err(), "its bytes are kept for nobody");
}

#[test]
fn fsync_of_one_folder_says_nothing_of_another_but_brings_a_renaming_whole() {
    let mut tree = tree();
    let folder =
        |tree: &mut Tree, name: &str| tree.make(ROOT, name.as_ref(), Kind::Folder(Folder::default()), 0o700, (0, 0));
    let (one, two) = (folder(&mut tree, "one").expect("new"), folder(&mut tree, "two").expect("new"));
    tree.sync_folder(ROOT).expect("a folder");
    let number = tree.make(one, "a".as_ref(), Kind::File(File::default()), 0o600, (0, 0)).expect("new");
    tree.make(two, "b".as_ref(), Kind::File(File::default()), 0o600, (0, 0)).expect("new");
    tree.sync_folder(one).expect("a folder");
    tree.rename((one, "a".as_ref()), (two, "a".as_ref()), true).expect("it is there");
    tree.sync_folder(one).expect("a folder");
    tree.forget(None);
    assert_eq!(tree.lookup(two, "a".as_ref()).ok(), Some(number), "the file is in neither folder");
    assert!(tree.lookup(one, "a".as_ref()).is_err());
}
