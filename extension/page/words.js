// Words by which sections of an advert are known, in several languages. Matched against lower-case text.

(() => {
  const page = (globalThis.tunesmith ??= {});

  page.REQUIREMENTS = new RegExp([
    // English
    "requirement", "qualification", "what you('ll| will)? (bring|need|have)", "you('ll| will)? (bring|need|have)\\b", "looking for", "who you are", "about you\\b",
    "your (profile|skills|experience|background)", "must[- ]haves?", "nice[- ]to[- ]haves?", "(essential|desirable|minimum|preferred|required) ", "^(skills|experience|education)\\b",
    "skills (and|&|/) experience", "experience (and|&) ", "person specification", "ideal candidate",
    // German
    "anforderung", "qualifikation", "(dein|ihr|euer|das) profil\\b", "^profil$", "(mitbring|bring(st|en)? (du|sie)|bringst)", "voraussetzung", "kenntnisse", "wir erwarten",
    "erwarten wir", "wen wir suchen", "wir suchen", "das solltest du", "das zeichnet (dich|sie) aus", "damit überzeug",
    // French
    "profil (recherché|souhaité|attendu|requis)", "(votre|ton|le) profil\\b", "compétence", "exigence", "prérequis", "pré-requis", "expérience (requise|souhaitée)", "formation (et|requise|souhaitée)",
    "nous recherchons", "vous (avez|êtes)\\b", "savoir-faire", "qualités",
    // Spanish
    "requisito", "(tu|su|el) perfil\\b", "^perfil", "cualificacion", "qué buscamos", "lo que buscamos", "competencias", "conocimientos", "experiencia (requerida|necesaria|mínima)",
    "formación (requerida|necesaria|y )", "se requiere", "imprescindible", "habilidades", "aptitudes",
    // Italian, Portuguese, Dutch
    "requisiti", "competenze", "profilo", "cosa cerchiamo", "qualificaç", "competências", "o que procuramos", "functie-?eisen", "jouw profiel", "wat (je|jij) meebreng", "wij vragen", "vereisten",
  ].join("|"), "u");

  // Kinds of words that an advert has and other pages seldom have together; each kind counts once.
  page.KINDS = [
    /responsibilit|what you('ll| will) (do|be doing)|your (role|tasks|mission)|the role\b|duties|(deine|ihre|die) aufgaben|aufgabengebiet|tätigkeiten|(vos|tes|les) missions|responsabilités|description du poste|funciones|responsabilidades|tareas|mansioni|taken\b/u,
    /we offer|benefits|what you('ll| will)? get|perks|wir bieten|das bieten wir|unser angebot|benefits|nous (vous )?(offrons|proposons)|avantages|ofrecemos|qué ofrecemos|beneficios|offriamo|wij bieden/u,
    /full[- ]time|part[- ]time|permanent|fixed[- ]term|vollzeit|teilzeit|unbefristet|befristet|temps (plein|partiel)|\bcd[id]\b|jornada (completa|parcial)|contrato|tempo pieno|fulltime|parttime/u,
    /salary|per (hour|annum|year)|gehalt|vergütung|entgelt|salaire|rémunération|salario|retribución|sueldo|stipendio|salaris/u,
    /apply (now|by|online|for)|how to apply|send (us )?your (application|cv|résumé|resume)|closing date|bewerb(en|ung)|postul(er|ez)|candidature|(envía|enviar|manda) (tu|su) (cv|currículum|candidatura)|solicitar|inscríb|candidati|solliciteer/u,
    /\b(vacancy|job (advert|description|title|type)|hiring|position of|join (us|our team))\b|stellen(anzeige|angebot|ausschreibung)|\(m\/w\/d\)|\(w\/m\/d\)|offre d['’]emploi|\bposte\b|\(h\/f\)|\(f\/h\)|oferta de (empleo|trabajo)|\bpuesto\b|offerta di lavoro|vacature|\(m\/f\/d\)|\(f\/m\/x\)/u,
    /years?['’]? (of )?experience|experience (in|with|as)|jahre(lange)? (berufs)?erfahrung|berufserfahrung|ans d['’]expérience|expérience (en|de|dans)|años de experiencia|experiencia (en|como|con)|anni di esperienza|jaar ervaring/u,
  ];

  page.COMPANY = /^(?:hiring )?(?:company|employer|organi[sz]ation|unternehmen|arbeitgeber(?:in)?|firma|entreprise|société|employeur|empresa|compañía|empleador|azienda|bedrijf|werkgever)\s*(?:name)?\s*[:：–-]?\s*$/iu;
  page.COMPANY_LINE = /^(?:hiring )?(?:company|employer|organi[sz]ation|unternehmen|arbeitgeber(?:in)?|firma|entreprise|société|employeur|empresa|compañía|empleador|azienda|bedrijf|werkgever)\s*(?:name)?\s*[:：]\s*(\S.{0,120})$/iu;
  page.AT = /^(.{3,120}?)\s+(?:at|bei|chez|@)\s+(\p{Lu}.{1,80})$/u;
})();
