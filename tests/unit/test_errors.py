"""The error table in the docstring is the truth about the classes, and errors survive a process border."""

import pickle

import pytest

from chorus_cluster import errors

EXAMPLES: list[errors.ChorusError] = [
    errors.InvalidRequest("messages[0].content", "must be a string"),
    errors.ContextTooLong("messages", "too long"),
    errors.Unauthenticated("no key"),
    errors.PermissionDenied("not for this"),
    errors.ModelNotFound("nope"),
    errors.ResponseNotFound("resp_1"),
    errors.PayloadTooLarge(1024),
    errors.ClientTooSlow(),
    errors.Overloaded(2.5),
    errors.Unavailable(retry_after_s=1.0),
    errors.DeadlineExceeded(),
    errors.RequestFailed(),
    errors.InternalError(),
]


def documented_rows() -> dict[str, list[str]]:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]
    return {words[0]: words[1:] for words in lines if len(words) == 6 and words[2].isdigit()}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_docstring_table_matches_class(error: errors.ChorusError) -> None:
    status, http, type_, code, param = documented_rows()[type(error).__name__]
    assert error.grpc_status.name == status
    assert error.http_status == int(http)
    assert (error.type, error.code) == (type_, code)
    assert (error.field is None) == (param == "-")
    assert error.body()["error"] == {
        "message": error.message,
        "type": type_,
        "param": error.field,
        "code": code,
    }


def test_docstring_table_names_every_leaf() -> None:
    def leaves(cls: type[errors.ChorusError]) -> set[str]:
        below = [name for sub in cls.__subclasses__() for name in leaves(sub)]
        own = {cls.__name__} if "__init__" in vars(cls) or not below else set()
        return own | set(below)

    found = leaves(errors.ChorusError) - {"ChorusError"}
    assert found == set(documented_rows()) == {type(error).__name__ for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: errors.ChorusError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.body() == error.body()
    assert copy.retry_after_s == error.retry_after_s
    assert str(copy) == error.message


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.5, "3"), (4.0, "4")])
def test_retry_after_rounds_up(seconds: float, header: str) -> None:
    assert errors.Overloaded(seconds).retry_after_header() == header


def test_unknown_exceptions_stay_opaque() -> None:
    shown = errors.to_client_error(ValueError("secret prompt text"))
    assert isinstance(shown, errors.InternalError)
    assert "secret" not in shown.message
