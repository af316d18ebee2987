"""Operations: one door (ops), several bodies behind it, one definition of correct (reference)."""
