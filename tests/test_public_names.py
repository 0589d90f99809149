import tiedio


def test_public_names():
    assert tiedio.__all__ == [
        "AssertTied",
        "Place",
        "TieGroup",
        "TiedBackupAndRestore",
        "TiedModelCheckpoint",
        "TiedioError",
        "TiedioWarning",
        "assert_tied",
        "find_ties",
        "load_tied",
        "load_tied_weights",
        "patch",
        "plot_ties",
        "save_tied",
        "save_tied_weights",
        "summary",
        "tie",
        "unpatch",
        "untie",
    ]
    assert all(getattr(tiedio, name).__doc__ for name in tiedio.__all__)
    assert dir(tiedio) == tiedio.__all__
