package event

import "strings"

// currencies are those of ISO 4217, list one, that a shop can take, by the decimals of their amounts. The libraries have other
// tables: CLDR's digits, those of golang.org/x/text, are for display (none for RSD and COP), and others lag behind the list.
// Funds, metals and codes for tests are not there.
var currencies = map[int]string{
	0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
	2: `AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK
		DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT
		LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN
		QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS
		VED VES WST XCD XCG YER ZAR ZMW ZWG`,
	3: "BHD IQD JOD KWD LYD OMR TND",
}

// Decimals returns how many decimals the amounts of a currency have by ISO 4217, and whether that is a currency in use.
func Decimals(currency string) (decimals int, known bool) {
	for decimals, codes := range currencies {
		for code := range strings.FieldsSeq(codes) {
			if code == currency {
				return decimals, true
			}
		}
	}
	return 0, false
}
