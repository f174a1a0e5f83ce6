//! The engine in a browser: one per database, on the event loop of the Worker that holds the
//! database. It starts the driver loop of `wavesync-net`, shows what it does, and stops it.
//!
//! The database is open already, by the application's connection. No decision of the protocol is
//! made here.

pub mod file;
mod options;
pub mod report;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select;
use js_sys::Function;
use rusqlite::Connection;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::spawn_local;
use wavesync_core::auth::{GroupKey, check_passphrase, weakness};
use wavesync_core::limits::Bounds;
use wavesync_core::machine::{Event, Level};
use wavesync_core::store::Store;
use wavesync_core::store::group::{Join, check_topic};
use wavesync_core::store::identity::{FileIdentity, Identity};
use wavesync_core::store::report::conflict_counts;
use wavesync_net::driver::{self, Board, Control, Inbox, Parts, Settings, Snapshot};

use crate::error::{Fault, Result};
use file::Changed;
use options::Options;

/// Rows of one transaction: while it runs, no query of the application is answered.
const TRANSACTION_MAX_ROWS: usize = 250;
/// A start that SQLite could not serve is tried again after this long, in milliseconds.
const START_RETRY_MS: u64 = 100;

/// A running engine.
struct Engine {
    control: Control,
    board: Board,
    changed: Changed,
    topic: String,
    /// Derived from topic and passphrase.
    lan_key: [u8; 32],
    on_change: RefCell<Option<Function>>,
    on_status: RefCell<Option<Function>>,
    /// For reports.
    reader: Connection,
    /// Closed when the engine has ended.
    ended: async_channel::Receiver<()>,
}

thread_local! {
    static ENGINES: RefCell<BTreeMap<String, Rc<Engine>>> = const { RefCell::new(BTreeMap::new()) };
}

/// What the engine of a database shows; `None` without one.
pub fn snapshot(database: &str) -> Option<Snapshot> {
    find(database).map(|engine| engine.board.snapshot())
}

fn find(database: &str) -> Option<Rc<Engine>> {
    ENGINES.with_borrow(|engines| engines.get(database).cloned())
}

fn running(database: &str) -> Result<Rc<Engine>> {
    find(database).ok_or_else(|| {
        Fault::new("not_joined", "this database is not joined here", "call join() first")
    })
}

#[wasm_bindgen]
extern "C" {
    /// Where the page came from; a Worker made from a blob inherits it.
    #[wasm_bindgen(thread_local_v2, js_name = origin)]
    static ORIGIN: Option<String>;

    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

/// Makes a database a member of a group and starts its engine; gives the site id in hex. A second
/// call adds `peers`, tracks `tables`, stores `name`, and decides about rows from before joining; the
/// relays stay those of the first. `foreign_keys` is that setting of the application's connection.
///
/// # Errors
/// `no_relay`, `insecure_websocket`, `not_websocket`, `bad_address`, `bad_options`, `bad_topic`,
/// `already_joined`, or what SQLite says.
#[wasm_bindgen(js_name = engineJoin)]
pub fn join(
    database: &str,
    topic: &str,
    passphrase: &str,
    options: &str,
    foreign_keys: bool,
) -> Result<String, JsValue> {
    let secure = ORIGIN.with(|origin| origin.as_ref().is_some_and(|o| o.starts_with("https:")));
    let options = Options::parse(options, secure)?;
    Ok(join_with(database, topic, passphrase, options, foreign_keys)?)
}

fn join_with(
    database: &str,
    topic: &str,
    passphrase: &str,
    options: Options,
    foreign_keys: bool,
) -> Result<String> {
    check_topic(topic)?;
    check_passphrase(passphrase)?;
    let key = GroupKey::from_passphrase(topic, passphrase)?;
    let engine = find(database).filter(|engine| !engine.is_over());
    if engine.as_ref().is_some_and(|e| e.topic != topic || e.lan_key != key.lan_key()) {
        return Err(Fault::new(
            "already_joined",
            "this database is joined with another topic or passphrase",
            "call leave() first",
        ));
    }
    let identity = file::identity(database)?;
    let mut store = Store::open(file::connect(database)?)?;
    let join = Join {
        topic: topic.to_owned(),
        tables: options.tables,
        adopt_schema: options.adopt_schema,
        foreign_keys,
        existing: options.existing,
    };
    let first = store.topic()?.is_none();
    store.join(driver::now(), &join, &identity, &random())?;
    if let Some(name) = &options.name {
        store.set_setting(driver::now(), "name", name)?;
    }
    let name = store.setting("name")?.unwrap_or_default();
    let decided = match options.existing.filter(|_| !first) {
        Some(existing) => store.decide_existing(driver::now(), existing),
        None => Ok(()),
    };
    let site = store.site_id()?.map(|site| site.to_string()).unwrap_or_default();
    drop(store);
    if let Some(engine) = engine {
        options.peers.iter().for_each(|peer| engine.control.dial(peer));
        engine.control.resume();
        engine.control.committed(0);
        // A refusal ends nothing of an engine that runs; one that does not run is not started.
        return decided.map(|()| site).map_err(Into::into);
    }
    decided?;
    let reader = file::connect(database)?;
    let settings = Settings {
        key,
        topic: topic.to_owned(),
        name,
        listen: Vec::new(),
        peers: options.peers,
        relays: options.relays,
        direct: false,
        lan: false,
    };
    start(database, settings, passphrase, reader);
    Ok(site)
}

fn random() -> [u8; 64] {
    let mut random = [0; 64];
    driver::random(&mut random);
    random
}

fn start(database: &str, settings: Settings, passphrase: &str, reader: Connection) {
    let (control, inbox) = Control::new();
    let (alive, ended) = async_channel::bounded(1);
    let board = Board::default();
    board.update(|snapshot| {
        "starting".clone_into(&mut snapshot.state);
        snapshot.topic.clone_from(&settings.topic);
        snapshot.leader = true;
    });
    warn_if_weak(passphrase, &board);
    let before = find(database);
    let engine = Rc::new(Engine {
        control,
        board,
        changed: Changed::default(),
        topic: settings.topic.clone(),
        lan_key: settings.key.lan_key(),
        on_change: RefCell::new(before.as_ref().and_then(|e| e.on_change.take())),
        on_status: RefCell::new(before.as_ref().and_then(|e| e.on_status.take())),
        reader,
        ended,
    });
    ENGINES.with_borrow_mut(|engines| engines.insert(database.to_owned(), engine.clone()));
    spawn_local(tell(engine.clone()));
    let database = database.to_owned();
    spawn_local(async move {
        let done = lead(&database, settings, inbox, &engine).await;
        engine.over(done);
        drop(alive);
    });
}

/// A weak passphrase works like any other; whoever chose it is told.
fn warn_if_weak(passphrase: &str, board: &Board) {
    let Some(message) = weakness(passphrase) else { return };
    let hint = "choose a longer one; to change it, every member leaves and joins again";
    let (level, code) = (Level::Warning, "weak_passphrase");
    board.log(driver::now(), Event { level, code, message, hint: hint.to_owned(), peer: None });
}

/// Runs the driver until it is stopped, under a new identity if need be.
async fn lead(
    database: &str,
    mut settings: Settings,
    mut inbox: Inbox,
    engine: &Engine,
) -> Result<()> {
    loop {
        let Some((store, identity)) = open_patiently(database, &inbox, engine).await? else {
            break;
        };
        let board = engine.board.clone();
        let parts = Parts { store, identity, settings: settings.clone(), inbox, board };
        let done = driver::drive(parts).await;
        let again = done.map_err(|error| Fault::new("network", error.to_string(), ""))?;
        let Some(again) = again else { break };
        settings.peers = again.peers;
        inbox = again.inbox;
    }
    Ok(())
}

/// Starts the store, waiting while SQLite cannot, for example because the application has a
/// transaction open; `None` if asked to stop meanwhile.
async fn open_patiently(
    database: &str,
    inbox: &Inbox,
    engine: &Engine,
) -> Result<Option<(Store, Identity)>> {
    let file = file::identity(database)?;
    loop {
        match open_store(database, &file, &engine.changed) {
            Ok(opened) => return Ok(Some(opened)),
            Err(fault) if fault.code != "busy" => return Err(fault),
            Err(fault) => engine.board.update(|shown| shown.progress.last_error = fault.message),
        }
        if inbox.stopped_after(Duration::from_millis(START_RETRY_MS)).await {
            return Ok(None);
        }
    }
}

fn open_store(database: &str, file: &FileIdentity, changed: &Changed) -> Result<(Store, Identity)> {
    let mut store = Store::open(file::connect_noting(database, changed)?)?;
    store.set_bounds(Bounds {
        chunk_rows: TRANSACTION_MAX_ROWS,
        backfill_rows: TRANSACTION_MAX_ROWS,
        ..Bounds::default()
    });
    let identity = store.start(driver::now(), file, &random())?;
    Ok((store, identity))
}

/// Calls back after what the engine does, until it has ended.
async fn tell(engine: Rc<Engine>) {
    let news = engine.board.listen();
    loop {
        let over = futures::select_biased! {
            _ = std::pin::pin!(engine.ended.recv().fuse()) => true,
            _ = std::pin::pin!(news.recv().fuse()) => false,
        };
        let tables = engine.changed.take();
        if !tables.is_empty() {
            let list = serde_json::json!(tables).to_string();
            call(&engine.on_change, &[list.into()]);
        }
        call(&engine.on_status, &[]);
        if over {
            return;
        }
    }
}

fn call(callback: &RefCell<Option<Function>>, arguments: &[JsValue]) {
    // Taken out first: the callback may set another one.
    let Some(function) = callback.borrow().clone() else { return };
    let list: js_sys::Array = arguments.iter().collect();
    if let Err(error) = function.apply(&JsValue::NULL, &list) {
        console_error(&format!("wavesync: a callback has thrown: {error:?}"));
    }
}

impl Engine {
    fn is_over(&self) -> bool {
        self.ended.is_closed()
    }

    fn over(&self, done: Result<()>) {
        let Err(fault) = done else {
            return self.board.update(|shown| "stopped".clone_into(&mut shown.state));
        };
        let message = fault.message;
        let hint = "join again once the cause is gone".to_owned();
        let event = Event {
            level: Level::Error,
            code: "engine",
            message: message.clone(),
            hint,
            peer: None,
        };
        self.board.log(driver::now(), event);
        self.board.update(|shown| {
            "failed".clone_into(&mut shown.state);
            shown.failure = message;
            shown.peers.clear();
        });
    }
}

/// Stops the engine, having sent what waits; with `forget` everything that wavesync keeps in the
/// database is removed, and a plain database is left.
///
/// # Errors
/// What SQLite says.
#[wasm_bindgen(js_name = engineLeave)]
pub async fn leave(database: String, forget: bool) -> Result<(), JsValue> {
    if let Some(engine) = find(&database) {
        engine.control.stop();
        // Nothing is ever sent: the channel closes when the engine has ended.
        let _closed = engine.ended.recv().await;
        ENGINES.with_borrow_mut(|engines| engines.remove(&database));
    }
    if forget {
        let forget = || -> Result<()> { Ok(Store::open(file::connect(&database)?)?.forget()?) };
        forget()?;
    }
    Ok(())
}

/// Leaves the network; what is written here goes on being recorded. Over when nobody is connected
/// any more.
///
/// # Errors
/// `not_joined`.
#[wasm_bindgen(js_name = enginePause)]
pub async fn pause(database: String) -> Result<(), JsValue> {
    let engine = running(&database)?;
    let paused = engine.control.pause();
    // Nothing is ever sent.
    let _closed = select(pin!(paused.recv()), pin!(engine.ended.recv())).await;
    Ok(())
}

/// Returns to the network.
///
/// # Errors
/// `not_joined`.
#[wasm_bindgen(js_name = engineResume)]
pub fn resume(database: &str) -> Result<(), JsValue> {
    running(database)?.control.resume();
    Ok(())
}

/// Connects anew to everybody, at once; for when the browser is online again.
#[wasm_bindgen(js_name = engineNetworkChanged)]
pub fn network_changed(database: &str) {
    if let Some(engine) = find(database) {
        engine.control.network_changed();
    }
}

/// To be called after every commit of the application. Costs next to nothing.
#[wasm_bindgen(js_name = engineCommitted)]
pub fn committed(database: &str) {
    if let Some(engine) = find(database) {
        engine.control.committed(0);
    }
}

/// `wavesync_status` as a JSON object with `joined`.
///
/// # Errors
/// What SQLite says.
#[wasm_bindgen(js_name = engineStatus)]
pub fn status(database: &str) -> Result<String, JsValue> {
    let Some(engine) = find(database) else { return Ok(r#"{"joined":false}"#.to_owned()) };
    let counts = conflict_counts(&engine.reader).map_err(Fault::from)?;
    Ok(report::status(&engine.board.snapshot(), counts).to_string())
}

/// `wavesync_peers` as a JSON list.
#[wasm_bindgen(js_name = enginePeers)]
#[must_use]
pub fn peers(database: &str) -> String {
    find(database)
        .map_or_else(|| "[]".to_owned(), |e| report::peers(&e.board.snapshot()).to_string())
}

/// `wavesync_events` as a JSON list: those newer than number `since`.
#[wasm_bindgen(js_name = engineEvents)]
#[must_use]
pub fn events(database: &str, since: f64) -> String {
    let shown = |engine: Rc<Engine>| {
        report::events(&engine.board.snapshot(), since.max(0.0) as u64).to_string()
    };
    find(database).map_or_else(|| "[]".to_owned(), shown)
}

/// Calls `callback(tables)` after changes of others were committed; `tables` is a JSON list of names,
/// or `null` if any may have changed. There is one callback; `undefined` removes it.
///
/// # Errors
/// `not_joined`.
#[wasm_bindgen(js_name = engineOnChange)]
pub fn on_change(database: &str, callback: Option<Function>) -> Result<(), JsValue> {
    running(database)?.on_change.replace(callback);
    Ok(())
}

/// Calls `callback()` when the status, the peers or the events have changed. There is one callback;
/// `undefined` removes it.
///
/// # Errors
/// `not_joined`.
#[wasm_bindgen(js_name = engineOnStatus)]
pub fn on_status(database: &str, callback: Option<Function>) -> Result<(), JsValue> {
    running(database)?.on_status.replace(callback);
    Ok(())
}
