//! The sources keep to the shape of the house.
//!
//! Layers import downwards only, `unsafe` stays in its two rooms and gives its reason there, and
//! no file outgrows a reader. What is read is text, not syntax: comments and strings are blanked
//! out first, then words are looked for. That is enough for code that `rustfmt` has been over, and
//! needs no parser.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// From the lowest to the highest: a layer may import those before it.
const LAYERS: [&str; 9] =
    ["error", "sys", "shm", "sync", "channel", "shared", "process", "pool", "api"];

/// Imports that point upwards all the same: file, what it imports, and why.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    (
        "error.rs",
        "process",
        "a death is an error, and how a process ended (`process::Exit`) is plain data",
    ),
    ("error/shortage.rs", "sys", "an error that names a limit says what the limit is"),
];

/// The layers in which `unsafe` may be written.
const ROOMS: [&str; 2] = ["sys", "shm"];

/// Words that a source must not hold: they belong to someone's afternoon, not to the project.
const UNWANTED: [&str; 6] = ["dbg!(", "todo!(", "unimplemented!(", "FIXME", "XXX", "mod utils"];

const LONGEST: usize = 700; // lines

/// A source file, by its path below the folder that was searched.
struct Source {
    path: String,
    text: String,
    /// `text` with comments and the insides of literals blanked out, line by line.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), code: blanked(text) }
    }

    /// The layer that the file is part of; `lib.rs` is part of none and may import all.
    fn layer(&self) -> Option<usize> {
        let first = self.path.split('/').next()?;
        layer(first.strip_suffix(".rs").unwrap_or(first))
    }

    /// The modules above the file, from the crate's root: `shm/ring.rs` is `["shm", "ring"]`.
    fn module(&self) -> Vec<&str> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut names: Vec<_> = stem.split('/').collect();
        if matches!(names.last(), Some(&"mod" | &"lib")) {
            names.pop();
        }
        names
    }

    fn is_room(&self) -> bool {
        ROOMS.iter().any(|room| self.path.split('/').next() == Some(*room))
    }
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|each| *each == name)
}

/// Blank out comments, and what is between the quotes of literals; lines keep their numbers.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !is_word(chars[..at].last()) => raw_string_end(&chars, at).unwrap_or(at),
            '\'' => char_end(&chars, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn is_word(c: Option<&char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
}

fn comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// The end of `r"..."` or `r#"..."#`, if one begins here.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    let quote = at + 1 + hashes;
    if chars.get(quote) != Some(&'"') {
        return None;
    }
    let closes = |i: usize| {
        chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (quote + 1..chars.len()).find(|i| closes(*i)).map(|i| i + 1 + hashes)
}

/// The end of a character literal, if this quote does not begin a lifetime.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        return chars[at + 3..].iter().position(|c| *c == '\'').map(|n| at + 4 + n);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(at + 3)
}

/// The names of one path expression or `use` tree that starts with `crate` or `super`.
///
/// A tree is flattened as far as its first names: `crate::{sys, shm::ring}` gives both.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let code = &source.code;
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if is_word(before.as_ref()) || before == Some(':') || before == Some('$') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let mut rest = &code[at..];
            let mut module = source.module();
            if root == "crate::" {
                module.clear();
                rest = &rest[root.len()..];
            }
            // A module of a file's own, such as `tests`, is one deeper than the file: its first
            // `super` goes nowhere. Assuming that it does not can only find too little in code
            // that reaches far up, and code that does is found by its next `super`.
            while let Some(after) = rest.strip_prefix("super::") {
                module.pop();
                rest = after;
            }
            for name in first_names(rest) {
                let target = module.first().copied().unwrap_or(&name);
                found.push((line, target.to_owned()));
            }
        }
    }
    found
}

/// `ring::Ring` gives `ring`, and `{a::B, c}` gives `a` and `c`.
fn first_names(tree: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| is_word(Some(c))).collect()
    };
    let Some(group) = tree.strip_prefix('{') else {
        return vec![name(tree)];
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..i]));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What is wrong with a source of the engine, one complaint a line.
fn complaints(source: &Source) -> String {
    let mut out = String::new();
    upward_imports(source, &mut out);
    unsafe_code(source, &mut out);
    words_and_length(source, &mut out);
    out
}

fn upward_imports(source: &Source, out: &mut String) {
    let Some(own) = source.layer() else { return };
    for (line, name) in imports(source) {
        let excepted =
            EXCEPTIONS.iter().any(|(file, what, _)| *file == source.path && *what == name);
        if layer(&name).is_some_and(|other| other > own) && !excepted {
            let here = LAYERS[own];
            _ = writeln!(out, "{}:{line}: {here} imports {name}, which is above it", source.path);
        }
    }
}

fn unsafe_code(source: &Source, out: &mut String) {
    let texts: Vec<_> = source.text.lines().collect();
    for (i, line) in source.code.lines().enumerate() {
        let Some(what) = unsafe_on(line) else { continue };
        let place = format!("{}:{}", source.path, i + 1);
        if !source.is_room() {
            _ = writeln!(out, "{place}: unsafe outside of {}", ROOMS.join(" and "));
        } else if !reason_above(&texts, i, what) {
            _ = writeln!(out, "{place}: an unsafe {what} without its reason right above");
        }
    }
}

/// What kind of unsafety a line of code begins, if any; a type or an attribute begins none.
fn unsafe_on(line: &str) -> Option<&'static str> {
    let mut rest = line;
    while let Some(at) = rest.find("unsafe") {
        let alone = !is_word(rest[..at].chars().next_back().as_ref());
        let before = rest[..at].trim_end();
        rest = &rest[at + "unsafe".len()..];
        let after = rest.trim_start();
        if !alone || is_word(rest.chars().next().as_ref()) {
            continue;
        }
        if after.starts_with('{') || after.is_empty() {
            return Some("block");
        } else if after.starts_with("impl") {
            return Some("impl");
        } else if after.starts_with("trait") {
            return Some("trait");
        } else if after.starts_with("fn") && !before.ends_with([':', '<', '(', ',', '=', '>']) {
            return Some("fn");
        } else if after.starts_with("extern") && !before.ends_with([':', '<', '(', ',', '=', '>']) {
            return Some("extern");
        }
    }
    None
}

/// Is the reason on this line, or in the comment that ends right above its statement?
///
/// A `fn` or a `trait` says under `# Safety` in its documentation what it asks of others.
fn reason_above(lines: &[&str], at: usize, what: &str) -> bool {
    let asks = matches!(what, "fn" | "trait");
    let is_reason = |line: &str| {
        line.contains("SAFETY:") || asks && (line.contains("# Safety") || line.contains("Safety:"))
    };
    if is_reason(lines[at]) {
        return true;
    }
    // Up over attributes and the beginning of the same statement, then through the comment.
    let above = lines[..at].iter().rev().map(|line| line.trim());
    let mut in_comment = false;
    for (steps, line) in above.enumerate() {
        if line.starts_with("//") {
            in_comment = true;
            if is_reason(line) {
                return true;
            }
        } else if in_comment || line.is_empty() || steps > 4 {
            return false;
        } else if line.ends_with(';') || line.ends_with('}') {
            return false; // another statement
        }
    }
    false
}

fn words_and_length(source: &Source, out: &mut String) {
    let lines = source.text.lines().count();
    if lines > LONGEST {
        _ = writeln!(out, "{}: {lines} lines, more than {LONGEST}", source.path);
    }
    for (i, line) in source.text.lines().enumerate() {
        for word in UNWANTED.iter().filter(|word| line.contains(**word)) {
            _ = writeln!(out, "{}:{}: {word}", source.path, i + 1);
        }
    }
}

/// Every Rust source below `folder`.
fn sources(folder: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.into()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder of sources can be read") {
            let path = entry.expect("a folder of sources can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder).expect("it was found below").to_string_lossy();
                let text = fs::read_to_string(&path).expect("a source is UTF-8");
                found.push(Source::new(&name, &text));
            }
        }
    }
    found
}

fn crates() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/phalanx is in crates/")
}

#[test]
fn the_engine_keeps_its_layers_and_its_rooms() {
    let sources = sources(&crates().join("phalanx/src"));
    assert!(sources.iter().any(|source| source.path == "lib.rs"), "these are not our sources");
    let complaints: String = sources.iter().map(complaints).collect();
    assert!(complaints.is_empty(), "\n{complaints}");
}

#[test]
fn the_glue_has_no_unsafe_code_but_for_buffers() {
    let mut complaints = String::new();
    for source in sources(&crates().join("phalanx-python/src")) {
        // `sys` and `shm` are rooms of the engine only.
        let room = if source.path == "buffer.rs" { "shm" } else { "glue" };
        unsafe_code(&Source { path: format!("{room}/{}", source.path), ..source }, &mut complaints);
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

#[test]
fn every_exception_is_still_needed() {
    let sources = sources(&crates().join("phalanx/src"));
    for (file, what, _reason) in EXCEPTIONS {
        let source = sources.iter().find(|source| source.path == file);
        let names = source.map(imports).unwrap_or_default();
        assert!(names.iter().any(|(_, name)| name == what), "{file} imports no {what}");
    }
}

mod the_checker {
    use super::{LONGEST, Source, blanked, complaints};

    fn finds(path: &str, text: &str, complaint: &str) {
        let found = complaints(&Source::new(path, text));
        assert!(found.contains(complaint), "{text:?} should give {complaint:?}, gave {found:?}");
    }

    fn accepts(path: &str, text: &str) {
        assert_eq!(complaints(&Source::new(path, text)), "", "{text:?}");
    }

    #[test]
    fn finds_an_upward_import() {
        finds("sys/linux/fork.rs", "use crate::process::Exit;", ":1: sys imports process");
        finds("shm/ring.rs", "use crate::{\n    error, pool::Pool};", "shm imports pool");
        finds("shm/ring.rs", "use super::super::pool;", "shm imports pool");
        finds("sys/linux/mod.rs", "use super::super::shm::Ring;", "sys imports shm");
        finds("channel/pipe.rs", "fn f() {\n    crate::pool::g();\n}", ":2: channel imports pool");
    }

    #[test]
    fn accepts_downward_and_sideways_imports() {
        accepts("pool/engine.rs", "use crate::{process::{Exit, Process}, sys};\nuse super::task;");
        accepts("sys/linux/mod.rs", "use super::Contract;\nuse crate::error::Error;");
        accepts("error.rs", "use crate::process::Exit;");
        accepts("lib.rs", "pub use crate::pool::Pool;");
        accepts("sys/mod.rs", "// see crate::pool\nconst S: &str = \"crate::pool::X\";");
    }

    #[test]
    fn finds_unsafe_outside_its_rooms() {
        finds("pool/a.rs", "// SAFETY: no.\nunsafe { f() }", "unsafe outside of sys and shm");
        finds("lib.rs", "unsafe impl Send for A {}", "unsafe outside");
        accepts("pool/a.rs", "#![forbid(unsafe_code)] // unsafe { }\nlet s = \"unsafe { }\";");
    }

    #[test]
    fn finds_unsafe_without_a_reason() {
        finds("shm/a.rs", "let a = 1;\nunsafe { f() };", ":2: an unsafe block without its reason");
        finds("sys/a.rs", "// Some comment.\nunsafe impl Send for A {}", "an unsafe impl");
        finds("sys/a.rs", "// SAFETY: of another.\nunsafe { f() };\nunsafe { g() };", ":3:");
        finds("sys/a.rs", "/// Does.\nunsafe fn f() {}", "an unsafe fn");
    }

    #[test]
    fn accepts_unsafe_with_a_reason() {
        accepts("shm/a.rs", "// SAFETY: `x` is ours,\n// and nobody else's.\nunsafe { f(x) };");
        accepts("sys/a.rs", "// SAFETY: it is open.\nlet fd = check(\n    unsafe { f() },\n);");
        accepts("sys/a.rs", "// SAFETY: plain data.\n#[cfg(unix)]\nunsafe impl Send for A {}");
        accepts("sys/a.rs", "/// Does.\n///\n/// # Safety\n/// Once only.\npub unsafe fn f() {}");
        accepts(
            "sys/a.rs",
            "struct A { call: unsafe fn(u8) }\nfn f(g: unsafe extern \"C\" fn()) {}",
        );
    }

    #[test]
    fn finds_long_files_and_unwanted_words() {
        finds("pool/a.rs", &"\n".repeat(LONGEST + 1), "701 lines, more than 700");
        finds("pool/a.rs", "fn f() { todo!() }", "pool/a.rs:1: todo!(");
    }

    #[test]
    fn blanks_comments_and_literals_only() {
        assert_eq!(blanked("a // b\nc"), "a     \nc");
        assert_eq!(blanked("a /* b /* c */ d */ e"), format!("a {} e", " ".repeat(17)));
        assert_eq!(
            blanked(r#"f("a\"b", 'c', '\'')"#),
            format!("f({}, {}, {})", " ".repeat(6), " ".repeat(3), " ".repeat(4))
        );
        assert_eq!(blanked("r#\"a\"b\"# for"), format!("{} for", " ".repeat(8)));
        assert_eq!(blanked("&'a str, 'b'"), "&'a str,    ");
    }
}
