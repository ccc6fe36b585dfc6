"""Arithmetic from text without `eval`: numbers, names, operators and some functions, all of bounded size."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

from loraloom.errors import InputError

Value: TypeAlias = "bool | int | float | list[Value]"

MAX_LENGTH = 2000
MAX_DEPTH = 60
MAX_EXPONENT = 4000
MAX_BITS = 20_000

_OPERATORS: Mapping[type[ast.AST], Callable[..., Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: _power(base, exponent),
    ast.UAdd: lambda value: +value,
    ast.USub: lambda value: -value,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT:
        raise InputError(f"the exponent {exponent} is too large; at most {MAX_EXPONENT} is computed")
    if isinstance(base, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        return float(base) ** exponent
    result = base**exponent
    if isinstance(result, complex):
        raise InputError(f"{base} to the power of {exponent} is no real number")
    return result


def _sum(*values: object) -> object:
    terms = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return sum(cast("Sequence[float]", terms))


FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "sum": _sum,
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "pow": _power,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
    "floor": math.floor,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "int": int,
    "float": float,
}


def evaluate(expression: str, names: Mapping[str, Value]) -> bool | int | float:
    """The number that an expression means. Raises InputError that says what is wrong with it."""
    if len(expression) > MAX_LENGTH:
        raise InputError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are read")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        result = _Evaluation(names).value(tree.body, 0)
    except InputError:
        raise
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"the expression {expression!r} cannot be read: {error}") from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise InputError(f"the expression {expression!r} has no value: {error}") from error
    if isinstance(result, list):
        raise InputError(f"the expression {expression!r} gives a list; a number was expected")
    return result


class _Evaluation:
    """One walk over an expression's tree."""

    def __init__(self, names: Mapping[str, Value]) -> None:
        self._names = names

    def value(self, node: ast.expr, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise InputError(f"the expression is nested more than {MAX_DEPTH} deep")
        result = self._value(node, depth + 1)
        if isinstance(result, int) and result.bit_length() > MAX_BITS:
            raise InputError("a value in the expression is too large")
        return result

    def _value(self, node: ast.expr, depth: int) -> Value:
        match node:
            case ast.Constant(value=bool() | int() | float() as number):
                return number
            case ast.Name(id=name):
                return self._named(name)
            case ast.UnaryOp(op=op, operand=operand):
                return self._operator(op)(self._number(operand, depth))
            case ast.BinOp(left=left, op=op, right=right):
                return self._operator(op)(self._number(left, depth), self._number(right, depth))
            case ast.BoolOp(op=op, values=values):
                return self._either(isinstance(op, ast.Or), values, depth)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test, depth) else orelse, depth)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._compared(left, ops, comparators, depth)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._called(name, [self.value(arg, depth) for arg in args])
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self.value(element, depth) for element in elements]
            case ast.Subscript(value=whole, slice=place):
                return self._element(self.value(whole, depth), self.value(place, depth))
            case _:
                raise InputError(f"{ast.unparse(node)!r} is not allowed in an expression")

    def _named(self, name: str) -> Value:
        if name not in self._names:
            raise InputError(f"{name!r} is not known; known are {', '.join(self._names) or 'no names'}")
        return self._names[name]

    def _number(self, node: ast.expr, depth: int) -> float:
        value = self.value(node, depth)
        if isinstance(value, list):
            raise InputError(f"{ast.unparse(node)!r} is a list; a number was expected")
        return value

    def _operator(self, op: ast.AST) -> Callable[..., Value]:
        found = _OPERATORS.get(type(op))
        if found is None:
            raise InputError(f"the operator {type(op).__name__} is not allowed in an expression")
        return found

    def _either(self, wanted: bool, values: Sequence[ast.expr], depth: int) -> Value:
        """The first value that decides `or` (wanted) or `and`, else the last."""
        value: Value = False
        for node in values:
            value = self.value(node, depth)
            if bool(value) is wanted:
                break
        return value

    def _compared(
        self, left: ast.expr, ops: Sequence[ast.cmpop], others: Sequence[ast.expr], depth: int
    ) -> bool:
        before = self._number(left, depth)
        for op, node in zip(ops, others, strict=True):
            after = self._number(node, depth)
            if not self._operator(op)(before, after):
                return False
            before = after
        return True

    def _called(self, name: str, values: Sequence[Value]) -> Value:
        function = FUNCTIONS.get(name)
        if function is None:
            raise InputError(f"there is no function {name!r}; there are {', '.join(FUNCTIONS)}")
        return cast("Value", function(*values))

    def _element(self, whole: Value, place: Value) -> Value:
        if not isinstance(whole, list) or not isinstance(place, int) or not -len(whole) <= place < len(whole):
            raise InputError(f"[{place}] is not there: indices count the elements of a list from 0")
        return whole[place]
