'use strict';
'require view';
'require dom';
'require fs';
'require poll';
'require rpc';
'require uci';
'require ddpd';

const FOLDER = '/var/run/ddpd';
const FOREVER = 4294967295;
const EVERY = 5;
const MOST = 250;
const OLD = 60;
const LATE = 10;

const callSystemInfo = rpc.declare({
	object: 'system',
	method: 'info',
	expect: { '': {} }
});

/* Of /etc/config/network this page may know nothing: it has secrets of others. */
const callInterfaceDump = rpc.declare({
	object: 'network.interface',
	method: 'dump',
	expect: { 'interface': [] }
});

/* ---- values: all of them may come from the network, or from a file that is half written ---- */

function text(thing) {
	return (thing == null) ? '' : String(thing);
}

function number(thing) {
	return (typeof(thing) == 'number' && isFinite(thing)) ? thing : 0;
}

function rowsOf(thing) {
	return Array.isArray(thing) ? thing.filter(row => L.isObject(row)) : [];
}

function joined(thing) {
	return Array.isArray(thing) ? thing.map(text).join(', ') : text(thing);
}

/* Seconds as a person says them: the two largest units. */
function lasting(seconds) {
	if (seconds == FOREVER)
		return _('for ever');

	let left = Math.max(0, Math.floor(seconds));
	const said = [];

	for (const [ unit, each ] of [ [ 'd', 86400 ], [ 'h', 3600 ], [ 'm', 60 ], [ 's', 1 ] ]) {
		said.push([ Math.floor(left / each), unit ]);
		left %= each;
	}

	const first = said.findIndex(([ count ]) => count > 0);

	return (first < 0) ? '0s' : said.slice(first, first + 2).filter(([ count ]) => count > 0)
		.map(([ count, unit ]) => '%d%s'.format(count, unit)).join(' ');
}

/* What is left of a lifetime, so long after it was written down. */
function left(seconds, ago) {
	return (seconds == FOREVER) ? FOREVER : Math.max(0, number(seconds) - ago);
}

function preferredOf(row, ago) {
	const seconds = left(row.preferred, ago);

	if (row.state != null && [ 'former', 'revoked' ].indexOf(row.state) >= 0)
		return row.state;

	return seconds ? lasting(seconds) : row.waits ? _('waits') : _('deprecated');
}

function validOf(row, ago) {
	const seconds = left(row.valid, ago);

	return seconds ? lasting(seconds) : _('ended');
}

/* ---- pieces; a text stands in a list, and so is a text node and never HTML ---- */

function table(name, heads, rows) {
	return E('div', { 'style': 'overflow-x:auto' }, [ E('table', { 'class': 'table cbi-section-table', 'data-name': name }, [
		E('tr', { 'class': 'tr table-titles' }, heads.map(head => E('th', { 'class': 'th' }, [ head ]))),
		...rows.map((row, n) => E('tr', { 'class': 'tr cbi-rowstyle-%d'.format(1 + n % 2) }, row.map((cell, at) =>
			E('td', { 'class': 'td', 'data-title': heads[at] }, [ dom.elem(cell) ? cell : text(cell) ]))))
	]) ]);
}

function part(title, content) {
	return E('div', {}, [ E('h4', {}, [ title ]), content ]);
}

function notice(said, grave) {
	return E('div', { 'class': 'alert-message %s'.format(grave ? 'danger' : 'warning') }, [].concat(said));
}

function prefixShown(prefix) {
	return E('span', { 'style': 'font-family:monospace;white-space:nowrap' }, [ text(prefix) ]);
}

function unbroken(said) {
	return E('span', { 'style': 'white-space:nowrap' }, [ said ]);
}

function bar(full) {
	const percent = '%.1f %%'.format(100 * full);
	const colour = (full >= 0.95) ? '#d9534f' : (full >= 0.8) ? '#f0ad4e' : '#5cb85c';

	return E('div', { 'class': 'cbi-progressbar', 'title': percent, 'style': 'min-width:8em' }, [
		E('div', { 'style': 'width:%.1f%%;background:%s'.format(100 * full, colour) })
	]);
}

/* ---- the parts of one daemon's status ---- */

/* A daemon that runs writes its file anew, some seconds after a lease has ended; that one is only no longer preferred
 * is nothing new to it. */
function isStale(said, ago) {
	return ago > OLD && [ ...rowsOf(said.held), ...rowsOf(said.granted) ]
		.some(row => number(row.valid) > 0 && row.valid != FOREVER && row.valid + LATE < ago);
}

/* What netifd says of an interface that is not up: each sentence once, with what was told of it last. */
function errorsOf(net) {
	if (net == null || net.up === true)
		return [];

	const found = new Map();

	for (const error of rowsOf(net.errors)) {
		const code = text(error.code);
		const sentence = Object.prototype.hasOwnProperty.call(ddpd.errors, code) ? ddpd.errors[code] : code;

		found.set(sentence, joined(error.data));
	}

	return [ ...found ].map(([ sentence, details ]) => notice([ _('This interface is not up:') + ' ', sentence,
		...(details ? [ ' ', E('code', { 'style': 'word-break:break-all' }, [ details ]) ] : []) ]));
}

function noticesOf(said, ago) {
	const found = [];

	if (isStale(said, ago))
		found.push(notice(_('ddpd may not be running: it wrote this %s ago, and something here has ended since.').format(lasting(ago)), true));

	if (said.disk_full)
		found.push(notice(_('The lease file cannot be written: is the disk full? No new leases are given.'), true));

	if (said.under_load)
		found.push(notice(_('Very many ask at once: who asks first has to show that his address is his own.')));

	if (number(said.recovering) > ago)
		found.push(notice(_('The lease file was lost or damaged. For %s only those are granted something who can show what they had.')
			.format(lasting(left(said.recovering, ago)))));

	if (number(said.skipped) > 0)
		found.push(notice(_('%d bad rows of pins or files of grantees are skipped; “ddpd check” names them.').format(said.skipped)));

	if (rowsOf(said.granted).some(row => row.clone))
		found.push(notice(_('A key is used by two machines; below it says whose.')));

	return found;
}

function poolsOf(said) {
	const rows = rowsOf(said.pools).map(row => [
		text(row.name),
		row.prefix ? prefixShown(row.prefix) : _('nowhere yet: %s').format(text(row.follows)),
		text(row.leases),
		row.prefix ? bar(Math.min(1, Math.max(0, 1 - number(row.free_fraction)))) : '',
		[ row.follows ? _('follows %s').format(row.follows) : '', row.share ? _('share %s').format(row.share) : '' ]
			.filter(word => word != '').join(', ')
	]);

	return rows.length ? [ part(_('Pools'), table('pools', [ _('Pool'), _('Prefix'), _('Leases'), _('Full'), '' ], rows)) ] : [];
}

/* ddpd knows the grantor of an interface by the interface's name; netifd was told what it is called. */
function grantorOf(row, name, net) {
	if (net == null)
		return text(name);

	const data = L.isObject(net.data) ? net.data : {};

	return text(data.name) || text(data.grantor) || text(row.at) || '?';
}

function heldOf(said, ago, net) {
	const places = {};

	rowsOf(said.grantors).forEach(row => { places[text(row.name)] = row; });

	const rows = rowsOf(said.held).map(row => [
		grantorOf(places[text(row.grantor)] || {}, row.grantor, net), text(row.slot), prefixShown(row.prefix),
		unbroken(preferredOf({ preferred: row.preferred, waits: row.waits }, ago)),
		unbroken(validOf(row, ago)), text(row.state)
	]);

	return rows.length ? [ part(_('Held'), table('held',
		[ _('From'), _('Slot'), _('Prefix'), _('Preferred'), _('Valid'), _('State') ], rows)) ] : [];
}

/* Of an interface of netifd, netifd makes the routes. */
function defaultsOf(row, net) {
	if (net == null)
		return joined(row.default);

	return rowsOf(net.route).filter(route => route.mask === 0).map(route => [
		(text(route.target).indexOf(':') >= 0) ? 'IPv6' : 'IPv4', route.nexthop ? 'via %s'.format(route.nexthop) : '',
		net.l3_device ? 'dev %s'.format(net.l3_device) : '', route.source ? 'from %s'.format(route.source) : ''
	].filter(word => word != '').join(' ')).join(', ');
}

function grantorsOf(said, net) {
	const grantors = rowsOf(said.grantors);
	const rows = grantors.map(row => [
		grantorOf(row, row.name, net), text(row.state), text(row.at), joined([ row.interface, row.tunnel ].filter(dev => dev)),
		(row.trip_ms == null) ? '' : _('%s ms').format(text(row.trip_ms)), defaultsOf(row, net)
	]);
	const refusals = [].concat(...grantors.map(row => rowsOf(row.refused).map(refusal =>
		[ grantorOf(row, row.name, net), text(refusal.slot), text(refusal.reason), text(refusal.text) ])));

	return [
		...(rows.length ? [ part(_('Grantors'), table('grantors',
			[ _('Grantor'), _('State'), _('At'), _('On'), _('Round trip'), _('Default route') ], rows)) ] : []),
		...(refusals.length ? [ part(_('Refused'), table('refused',
			[ _('Grantor'), _('Slot'), _('Reason'), _('What it says') ], refusals)) ] : [])
	];
}

/* What netifd has made of it: subnets on other networks, addresses here and on the networks that were made beside it. */
function subnetsOf(net, dump) {
	if (net == null)
		return [];

	const addressesOf = one => [ ...rowsOf(one['ipv6-address']), ...rowsOf(one['ipv4-address']) ]
		.map(row => [ text(one.l3_device || one.device), '%s/%s'.format(text(row.address), text(row.mask)) ]);
	const beside = dump.filter(one => one.dynamic === true && text(one.interface).startsWith('%s_'.format(text(net.interface))));
	const rows = [].concat(...[ net, ...beside ].map(addressesOf));

	for (const prefix of rowsOf(net['ipv6-prefix']))
		for (const name in (L.isObject(prefix.assigned) ? prefix.assigned : {})) {
			const subnet = prefix.assigned[name];

			if (L.isObject(subnet))
				rows.push([ '@%s'.format(name), '%s/%s'.format(text(subnet.address), text(subnet.mask)) ]);
		}

	return [
		...(rows.length ? [ part(_('Subnets and addresses'), table('subnets', [ _('Interface'), _('Prefix') ],
			rows.map(([ name, prefix ]) => [ name, prefixShown(prefix) ]))) ] : []),
		...[ [ _('Name servers'), net['dns-server'] ], [ _('Search domains'), net['dns-search'] ] ]
			.filter(([ title, found ]) => Array.isArray(found) && found.length)
			.map(([ title, found ]) => part(title, E('p', {}, [ joined(found) ])))
	];
}

function grantedRow(row, ago) {
	const notes = [
		(row.configured === false) ? _('removed') : '',
		row.clone ? _('used by two machines') : ''
	].filter(word => word != '');

	return [
		E('span', {}, [ text(row.grantee), notes.length ? ' (%s)'.format(notes.join(', ')) : '' ]),
		text(row.slot), prefixShown(row.prefix), unbroken(preferredOf(row, ago)), unbroken(validOf(row, ago)),
		unbroken(number(row.age) ? lasting(row.age + ago) : ''), text(row.reach), text(row.from), text(row.hostname), text(row.by)
	];
}

function grantedOf(said, ago, card, again) {
	const word = card.filter.value.trim().toLowerCase();
	const all = rowsOf(said.granted);
	const found = all.filter(row => word == '' || [ row.grantee, row.prefix, row.hostname, row.from, row.reach, row.by ]
		.some(thing => text(thing).toLowerCase().indexOf(word) >= 0));
	const shown = card.isLong ? found : found.slice(0, MOST);
	const unsaid = number(said.granted_in_all) - all.length;

	card.tools.style.display = (all.length > 10) ? '' : 'none';
	card.grantedTitle.style.display = all.length ? '' : 'none';
	dom.content(card.grantedTitle, [ _('Granted (%d)').format(Math.max(all.length, number(said.granted_in_all))) ]);

	if (!all.length)
		return [];

	const more = (found.length > shown.length) ? [ E('button', {
		'class': 'cbi-button cbi-button-neutral ddpd-all',
		'type': 'button',
		'click': () => {
			card.isLong = true;
			again();
		}
	}, [ _('Show all %d').format(found.length) ]) ] : [];

	return [
		table('granted', [ _('To'), _('Slot'), _('Prefix'), _('Preferred'), _('Valid'), _('Age'), _('Reached'), _('Asked from'), _('Host name'), _('By') ],
			shown.map(row => grantedRow(row, ago))),
		...more,
		...((unsaid > 0) ? [ E('p', {}, [ _('… and %d more: “ddpd leases” shows all.').format(unsaid) ]) ] : [])
	];
}

function ndpOf(said) {
	const rows = rowsOf(said.ndp).map(row => [
		text(row.interface), text(row.state), joined(row.proxied), text(row.heard), text(row.answered), text(row.asked_inside),
		L.isObject(row.ignored) ? Object.keys(row.ignored).map(fate => '%d %s'.format(number(row.ignored[fate]), fate)).join(', ') : ''
	]);

	return rows.length ? [ part(_('Neighbour solicitations'), table('ndp',
		[ _('Interface'), _('State'), _('Answered for'), _('Heard'), _('Answered'), _('Asked inside'), _('Ignored') ], rows)) ] : [];
}

function wireguardOf(said) {
	const rows = rowsOf(said.wireguard).map(row => [
		text(row.interface), text(row.state), number(row.port) ? text(row.port) : '', text(row.peers), text(row.added_peers),
		text(row.allowed_ips), text(row.leased_ips)
	]);

	return rows.length ? [ part(_('WireGuard'), table('wireguard',
		[ _('Interface'), _('State'), _('Port'), _('Peers'), _('Added peers'), _('Allowed IPs'), _('Leased of these') ], rows)) ] : [];
}

function countersOf(said) {
	const counters = L.isObject(said.counters) ? said.counters : {};

	return [ table('counters', [ _('Counter'), _('Count') ], Object.keys(counters).map(name => [ name, text(counters[name]) ])) ];
}

/* ---- one daemon: made once, so that what somebody has opened or written stays; then filled again and again ---- */

function cardOf(title) {
	const card = {
		notices: E('div', {}), key: E('div', {}), pools: E('div', {}), held: E('div', {}), grantors: E('div', {}), subnets: E('div', {}),
		grantedTitle: E('h4', { 'style': 'display:none' }), granted: E('div', {}), ndp: E('div', {}), wireguard: E('div', {}),
		counters: E('div', {}), version: E('small', { 'style': 'margin-left:1em' }), shownKey: null, isLong: false,
		filter: E('input', { 'class': 'cbi-input-text', 'type': 'text', 'placeholder': _('Filter: name, prefix, address …') })
	};

	card.tools = E('div', { 'style': 'display:none;margin-bottom:.5em' }, [ card.filter ]);
	card.more = E('details', { 'style': 'display:none;margin-top:1em' }, [
		E('summary', { 'style': 'cursor:pointer' }, [ _('Counters') ]), card.counters
	]);
	card.node = E('div', { 'class': 'cbi-section ddpd-card', 'style': 'margin-bottom:2em' }, [
		E('h3', {}, [ title, card.version ]), card.notices, card.key, card.pools, card.held, card.grantors, card.subnets,
		card.grantedTitle, card.tools, card.granted, card.ndp, card.wireguard, card.more
	]);

	return card;
}

function fillKey(card, key) {
	if (card.shownKey === key)
		return;

	card.shownKey = key;
	dom.content(card.key, key ? [ E('p', {}, [ _('Our public key:') + ' ', ddpd.copyable(key) ]) ] : []);
}

function fill(card, said, found, net) {
	const ago = (found.uptime != null && typeof(said.uptime) == 'number') ? Math.max(0, found.uptime - said.uptime) : 0;
	const parts = { notices: [ ...errorsOf(net), ...noticesOf(said, ago) ], pools: poolsOf(said), held: heldOf(said, ago, net),
		grantors: grantorsOf(said, net), subnets: subnetsOf(net, found.dump), ndp: ndpOf(said), wireguard: wireguardOf(said), counters: countersOf(said) };
	const refill = () => dom.content(card.granted, grantedOf(said, ago, card, refill));

	for (const name in parts)
		dom.content(card[name], parts[name]);

	dom.content(card.version, [ _('version %s').format(text(said.version)) ]);
	card.more.style.display = '';
	card.filter.oninput = refill;
	refill();
	fillKey(card, text(said.public_key));
}

/* No status: why, and what can be done. */
function fillWith(card, said, net) {
	for (const name of [ 'pools', 'held', 'grantors', 'subnets', 'granted', 'ndp', 'wireguard', 'counters', 'version' ])
		dom.content(card[name], []);

	card.grantedTitle.style.display = card.tools.style.display = card.more.style.display = 'none';
	dom.content(card.notices, [ ...errorsOf(net), notice(said) ]);
}

/* What the file says, or null: it is half written, or no status at all. */
function statusOf(content) {
	try {
		const said = JSON.parse(content);

		return (L.isObject(said) && !Array.isArray(said)) ? said : null;
	}
	catch (why) {
		return null;
	}
}

/* What is too large for one ubus message comes by HTTP. */
function readFile(path) {
	return fs.read(path).catch(() => fs.read_direct(path)).catch(() => null);
}

return view.extend({
	handleSave: null,
	handleSaveApply: null,
	handleReset: null,

	collect: function() {
		return Promise.all([
			L.resolveDefault(fs.list(FOLDER), []),
			L.resolveDefault(callSystemInfo(), {}),
			L.resolveDefault(callInterfaceDump(), []),
			fs.trimmed('/etc/ddpd/key.pub')
		]).then(([ files, info, dump, key ]) => {
			const nets = {};

			for (const net of rowsOf(dump))
				if (net.proto == 'ddpd')
					nets['if-%s.json'.format(text(net.interface))] = net;

			const listed = (Array.isArray(files) ? files : []).map(file => file.name)
				.filter(name => (/^(ddpd|if-[A-Za-z0-9_.-]+)\.json$/).test(name));
			const names = [ 'ddpd.json', ...listed, ...Object.keys(nets) ].filter((name, n, all) => all.indexOf(name) == n);

			return Promise.all(names.map(name => (listed.indexOf(name) >= 0)
				? readFile('%s/%s'.format(FOLDER, name)) : null)).then(contents => ({
				uptime: (L.isObject(info) && typeof(info.uptime) == 'number') ? info.uptime : null,
				key: key,
				nets: nets,
				dump: rowsOf(dump),
				files: names.map((name, n) => ({ name: name, content: contents[n], isThere: listed.indexOf(name) >= 0 }))
			}));
		});
	},

	load: function() {
		return L.resolveDefault(uci.load('ddpd')).then(() => this.collect());
	},

	/* Is the daemon of /etc/config/ddpd meant to run? Where only interfaces ask, nobody misses it. */
	isMissed: function(file, files) {
		return file.name == 'ddpd.json' && (uci.get('ddpd', 'main', 'enabled') == '1' || files.length == 1);
	},

	update: function(found) {
		const present = found.files.filter(file => file.isThere || file.name != 'ddpd.json' || this.isMissed(file, found.files));

		for (const name in this.cards)
			if (!present.some(file => file.name == name)) {
				this.cards[name].node.remove();
				delete this.cards[name];
			}

		for (const file of present) {
			const card = this.cards[file.name] || this.added(file.name);

			this.show(card, file, found);
		}
	},

	added: function(name) {
		const card = this.cards[name] = cardOf((name == 'ddpd.json') ? _('This router')
			: _('Interface %s').format(name.replace(/^if-(.*)\.json$/, '$1')));

		this.root.appendChild(card.node);

		return card;
	},

	show: function(card, file, found) {
		const said = file.content ? statusOf(file.content) : null;
		const net = found.nets[file.name];
		/* An interface may have a key of its own: only its status knows. */
		const key = (file.name == 'ddpd.json') ? found.key : '';

		if (said)
			card.said = said;

		if (!file.isThere) {
			card.said = null;
			fillWith(card, (file.name == 'ddpd.json')
				? E('span', {}, [ _('ddpd does not run, or has not written its status yet.') + ' ',
					E('a', { 'href': L.url('admin/services/ddpd') }, [ _('Configure it here.') ]) ])
				: E('span', {}, [ _('This interface is down, or has not written its status yet.') + ' ',
					E('a', { 'href': L.url('admin/network/network') }, [ _('Configure it among the interfaces.') ]) ]), net);
			fillKey(card, key);
		}
		else if (card.said) {
			fill(card, card.said, found, net);
		}
		else {
			fillWith(card, _('The status cannot be read just now; this page tries again every %d seconds.').format(EVERY), net);
			fillKey(card, key);
		}
	},

	render: function(found) {
		this.cards = {};
		this.root = E('div', { 'id': 'ddpd-status' });
		this.update(found);

		poll.add(() => this.collect().then(fresh => this.update(fresh)), EVERY);

		return E('div', {}, [
			E('h2', {}, [ _('Prefixes (ddpd)') ]),
			E('div', { 'class': 'cbi-map-descr' }, [ _('What this router holds of others, and what it has given.') ]),
			this.root
		]);
	}
});
