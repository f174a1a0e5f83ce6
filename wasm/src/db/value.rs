//! Values between SQL and JavaScript: all five types, whole numbers without loss.

use js_sys::{Array, BigInt, Date, Object, Uint8Array};
use rusqlite::Statement;
use rusqlite::types::{Value, ValueRef};
use wasm_bindgen::{JsCast, JsValue};

use crate::error::{Fault, Result};

/// Whole numbers up to here are exact in a JavaScript number.
const MAX_SAFE: i64 = 9_007_199_254_740_991;

/// A value of a row, for JavaScript.
pub fn to_js(value: ValueRef<'_>) -> JsValue {
    match value {
        ValueRef::Null => JsValue::NULL,
        ValueRef::Integer(number) if (-MAX_SAFE..=MAX_SAFE).contains(&number) => {
            JsValue::from_f64(number as f64)
        }
        ValueRef::Integer(number) => BigInt::from(number).into(),
        ValueRef::Real(number) => JsValue::from_f64(number),
        ValueRef::Text(text) => JsValue::from_str(&String::from_utf8_lossy(text)),
        ValueRef::Blob(bytes) => Uint8Array::from(bytes).into(),
    }
}

/// A parameter, for SQLite.
pub fn from_js(value: &JsValue) -> Result<Value> {
    if value.is_null() || value.is_undefined() {
        return Ok(Value::Null);
    }
    if let Some(number) = value.as_f64() {
        return Ok(from_number(number));
    }
    if let Some(text) = value.as_string() {
        return Ok(Value::Text(text));
    }
    if let Some(truth) = value.as_bool() {
        return Ok(Value::Integer(i64::from(truth)));
    }
    if value.is_bigint() {
        return i64::try_from(BigInt::unchecked_from_js(value.clone()))
            .map(Value::Integer)
            .map_err(|_| bad("a bigint does not fit into the 64 bits of an SQL integer"));
    }
    if let Some(bytes) = value.dyn_ref::<Uint8Array>() {
        return Ok(Value::Blob(bytes.to_vec()));
    }
    if let Some(buffer) = value.dyn_ref::<js_sys::ArrayBuffer>() {
        return Ok(Value::Blob(Uint8Array::new(buffer).to_vec()));
    }
    if value.is_instance_of::<Date>() {
        return Err(bad("a Date is no SQL value: bind date.getTime() or date.toISOString()"));
    }
    Err(bad("a parameter must be null, a number, a bigint, a boolean, a string or a Uint8Array"))
}

/// JavaScript has one type of number; what is whole and exact is an INTEGER.
fn from_number(number: f64) -> Value {
    let whole = number.fract() == 0.0 && number.abs() <= MAX_SAFE as f64;
    if whole && !(number == 0.0 && number.is_sign_negative()) {
        Value::Integer(number as i64)
    } else {
        Value::Real(number)
    }
}

fn bad(message: impl Into<String>) -> Fault {
    Fault::new("bad_parameter", message, "see the table of types in the package's README")
}

/// Binds a list, or an object by name (`:a`, `@a` and `$a` are all found as `a`).
pub fn bind(statement: &mut Statement<'_>, params: &JsValue) -> Result<()> {
    let wanted = statement.parameter_count();
    if params.is_undefined() || params.is_null() {
        return if wanted == 0 { Ok(()) } else { Err(missing(wanted, 0)) };
    }
    if let Some(list) = params.dyn_ref::<Array>() {
        if list.length() as usize != wanted {
            return Err(missing(wanted, list.length() as usize));
        }
        for (index, value) in list.iter().enumerate() {
            statement.raw_bind_parameter(index + 1, from_js(&value)?)?;
        }
        return Ok(());
    }
    let Some(object) = params.dyn_ref::<Object>() else {
        return Err(bad("parameters are a list, or an object with their names"));
    };
    bind_named(statement, object, wanted)
}

fn bind_named(statement: &mut Statement<'_>, object: &Object, wanted: usize) -> Result<()> {
    for index in 1..=wanted {
        let Some(name) = statement.parameter_name(index).map(str::to_owned) else {
            return Err(bad("a parameter without name takes its value from a list, not an object"));
        };
        let bare = name.trim_start_matches([':', '@', '$']);
        let found = [bare, name.as_str()]
            .into_iter()
            .find(|key| Object::has_own(object, &JsValue::from_str(key)));
        let Some(key) = found else { return Err(bad(format!("no value for parameter {name}"))) };
        let value = js_sys::Reflect::get(object, &key.into()).unwrap_or(JsValue::UNDEFINED);
        statement.raw_bind_parameter(index, from_js(&value)?)?;
    }
    Ok(())
}

fn missing(wanted: usize, given: usize) -> Fault {
    bad(format!("the statement has {wanted} parameters, {given} values were given"))
}
