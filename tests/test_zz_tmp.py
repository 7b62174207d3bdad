def test_a(talker):
    for p in ("hello","The quick brown fox","x y z"):
        g=talker.generate([p],max_tokens=40)[0]
        print(repr(g.text), [talker._engine.text.decode([t]) for t in g.tokens][:10])
        print(repr(talker.generate([p],max_tokens=40,temperature=1,seed=1)[0].text))
    assert 0
